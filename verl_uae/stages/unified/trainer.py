# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The unified stage: G4U and U4G in one run, in turns, or both in every step.

Shape legend: N captions of a step, m drawings of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from tensordict import NonTensorStack
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import register_trainer
from verl.utils.debug import marked_timer

from verl_uae.chain.records import CAPTION_FIELD, SAMPLE_FIELDS, Outcome, Sample, is_probe, samples_of
from verl_uae.stages.common.config import is_joint
from verl_uae.stages.common.group import DecoderTrainingGroup
from verl_uae.stages.g4u.decoder_group import DecoderGroup, canonical_order, fetch
from verl_uae.stages.g4u.trainer import G4UTrainer
from verl_uae.stages.u4g.pool import Explored
from verl_uae.stages.u4g.step import PolicyMixin, PolicyUpdate
from verl_uae.stages.u4g.trainer import policy_line


@dataclass(frozen=True, slots=True)
class Alternation:
    """G4U and U4G in turns: a function of the step alone, so that a resumed run agrees.

    Raises:
        ValueError: a length below 1, or an unknown first stage.
    """

    g4u_steps: int
    u4g_steps: int
    first: str = "g4u"

    def __post_init__(self) -> None:
        if self.g4u_steps < 1 or self.u4g_steps < 1 or self.first not in ("g4u", "u4g"):
            raise ValueError(f"impossible alternation: {self}")

    def stage(self, step: int) -> str:
        """``g4u`` or ``u4g``, of a step counted from 1."""
        lengths = {"g4u": self.g4u_steps, "u4g": self.u4g_steps}
        place = (step - 1) % (self.g4u_steps + self.u4g_steps)
        return self.first if place < lengths[self.first] else {"g4u": "u4g", "u4g": "g4u"}[self.first]

    def done(self, stage: str, step: int) -> int:
        """Steps of a stage among the first ``step`` steps."""
        cycle = self.g4u_steps + self.u4g_steps
        length = self.g4u_steps if stage == "g4u" else self.u4g_steps
        start = 0 if stage == self.first else cycle - length
        whole, rest = divmod(step, cycle)
        return whole * length + min(max(rest - start, 0), length)


@dataclass(frozen=True, slots=True)
class Joint:
    """Both in every step."""

    def stage(self, step: int) -> str:
        """``joint``."""
        return "joint"

    def done(self, stage: str, step: int) -> int:
        """Steps of a stage among the first ``step`` steps: all."""
        return step


#: ``unified/stage`` of what a schedule calls a step.
_STAGES = {"g4u": 0.0, "u4g": 1.0, "joint": 2.0}


@register_trainer("uae_unified")
class UnifiedTrainer(PolicyMixin, G4UTrainer):
    """The captioner's trainer with the decoder's policy beside it; each keeps its own optimiser.

    In turns, the decoder workers that reward the captioner get the policy's averaged weights whenever U4G hands over to
    G4U; the policy's captions are written by the caption server, which has the captioner's weights of the step before.

    Jointly, the policy draws all captions of the step, m times each, and there are no decoder workers. The mean of its
    drawings rewards a caption, whose group is its picture's; a drawing's group is its caption's. All captions of a
    picture are drawn from the same m noises. The policy's update comes first, the captioner's behind it.
    """

    schedule: Alternation | Joint
    _policy_update: PolicyUpdate
    """Of the step in work, where both learn in it."""
    _policy_metrics: dict[str, float]

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        unified = config.uae.unified
        turns = Alternation(unified.g4u_steps, unified.u4g_steps, unified.first)
        self.schedule = Joint() if is_joint(config) else turns

    @property
    def joint(self) -> bool:
        """Whether both learn in every step."""
        return isinstance(self.schedule, Joint)

    def _start_workers(self) -> list[DecoderGroup | DecoderTrainingGroup]:
        groups: list[DecoderGroup | DecoderTrainingGroup] = []
        if self.joint:
            self.resource_pool_manager, _ = self.create_pools(self.resource_pool_manager)
        else:
            groups = super()._start_workers()
        steps = self.schedule.done("u4g", self.total_training_steps)
        self.start_policy(self.resource_pool_manager.resource_pool_dict["global_pool"], steps)
        return [*groups, self.learner]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps > 0:
            self.load_decoder(self._resumed_folder())
            # The averaged weights stand still during G4U, so these are the ones the interrupted run used.
            if not self.joint and self.schedule.done("u4g", self.global_steps) > 0:
                self._send_decoder()

    def _save_checkpoint(self) -> None:
        with self.saving():
            # First, since the marker that the captioner's trainer writes last speaks for the whole folder.
            self.save_decoder(self._step_folder())
            super()._save_checkpoint()

    def watched(self) -> Iterator[tuple[str, Any]]:
        """The decoder's policy too."""
        yield from super().watched()
        yield from self.learner.named_ranks()

    def trained_ranks(self) -> Iterator[Any]:
        """Of both models."""
        yield from super().trained_ranks()
        yield from self.learner.group.workers

    def decoder_ranks(self) -> Iterator[Any]:
        """Those that draw, and those that learn."""
        yield from super().decoder_ranks()
        yield from self.learner.group.workers

    def stage_of_step(self) -> str:
        """That whose turn it is."""
        return self.schedule.stage(self.global_steps)

    def writes_ahead(self) -> bool:
        """Only to a step of the same stage: U4G's captions are others, and come from the newest weights."""
        stages = {self.schedule.stage(step) for step in (self.global_steps, self.global_steps + 1)}
        return stages == {"g4u"} and super().writes_ahead()

    def other_conditioned(self) -> Iterator[tuple[str, Any]]:
        """The decoder's policy, which is trained on the conditions that it will be used with."""
        yield from self.learner.named_ranks()

    def captioner_steps(self, step: int) -> int:
        """Those of G4U."""
        return self.schedule.done("g4u", step)

    def _send_decoder(self) -> None:
        """Give the decoder workers the policy's averaged weights."""
        self.decoders.load_decoder_state(self.learner.state_ref())

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """A step of whichever stage it is the turn of."""
        stage = self.schedule.stage(self.global_steps)
        metrics["unified/stage"] = _STAGES[stage]
        if stage == "u4g":
            return self._policy_step(metrics, timing_raw)
        self._policy_metrics = {}
        batch = super().step(metrics, timing_raw)
        metrics.update(self._policy_metrics)
        if "update_policy" in timing_raw:
            # verl's timer is around both updates.
            timing_raw["update_actor"] -= timing_raw["update_policy"]
        return batch

    # ------------------------------------------------------------ both in one step

    @property
    def drawings_per_caption(self) -> int:
        """Jointly as many as are in a group of the policy."""
        return int(self.config.uae.u4g.samples_per_caption) if self.joint else super().drawings_per_caption

    def redraw(
        self, batch: KVBatchMeta, extras: list[dict[str, Any]], groups: Sequence[str], *, validating: bool
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Jointly by the policy: with its averaged weights in validation, else with those that learn from it."""
        if not self.joint:
            return super().redraw(batch, extras, groups, validating=validating)
        columns = fetch(batch, SAMPLE_FIELDS)
        samples = samples_of(columns, [extra[CAPTION_FIELD].content for extra in extras])
        if validating:
            outcomes = self._evaluate(samples)
            self.losses.check(outcomes)
            return outcomes, {}
        done = self.schedule.done("u4g", self.global_steps - 1)
        explored = self.explore_policy(columns["raw_prompt"], samples, done)
        self.supervisor.boundary(f"what follows the rewards of step {self.global_steps}")
        outcomes = self._of_captions(explored, groups)
        self._policy_update = self.judge_policy(explored)
        return outcomes, explored.seconds

    def _of_captions(self, explored: Explored, groups: Sequence[str]) -> list[Outcome]:
        """Outcomes of the N captions: of each the mean of its drawings that have a reward; it has none where no drawing
        has. Terms that compare pictures compare all drawings of a picture here, and those of a caption for the policy.

        Args:
            explored: N x m drawings.
            groups: of each caption.
        """
        members = explored.layout.members
        of_pictures = [group for group in groups for _ in range(members)]
        drawn = self.compare(explored.outcomes, explored.members, of_pictures, explored.seconds)
        return [Outcome.of_caption(drawn[first : first + members]) for first in range(0, len(drawn), members)]

    def _evaluate(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One picture per caption with the sampler of validation; those of the panel come with theirs."""
        shown = [is_probe(sample.row["extra_info"], self.config.uae.panel.probes) for sample in samples]
        order = sorted(range(len(samples)), key=lambda place: not shown[place])
        found = self.learner.evaluate([samples[place] for place in order], sum(shown))
        outcomes = dict(zip(order, found, strict=True))
        return [outcomes[place] for place in range(len(samples))]

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Jointly the policy's update first: whatever ends the run between the two, none of the step is kept."""
        if not self.joint:
            return super()._update_actor(batch, metrics=metrics)
        with self.updating():
            found, seconds = self.update_policy(self._policy_update)
            self.timing_raw.update(seconds)
            self._policy_metrics = beside_captions({**self._policy_update.metrics, **found})
            return super()._update_actor(batch, metrics=metrics)

    # ------------------------------------------------------------ turns

    def _policy_step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        with marked_timer("caption", timing_raw):
            batch = self._write_captions()
        columns = fetch(batch, [*SAMPLE_FIELDS, "extra_fields"])
        samples = samples_of(columns, [extra[CAPTION_FIELD].content for extra in columns["extra_fields"]])
        done = self.schedule.done("u4g", self.global_steps - 1)
        found, seconds = self.improve_policy(columns["raw_prompt"], samples, done)
        metrics.update({**found, **self.conditioner_metrics})
        timing_raw.update(seconds)
        last = self.schedule.stage(self.global_steps + 1) == "g4u"
        # Validation shows the newest decoder too.
        if last or self._validates_now():
            with marked_timer("send_decoder", timing_raw):
                self._send_decoder()
        return batch

    def _validates_now(self) -> bool:
        frequency = self.config.trainer.test_freq
        ends = self.global_steps >= self.total_training_steps
        return frequency > 0 and (ends or self.global_steps % frequency == 0)

    def _write_captions(self) -> KVBatchMeta:
        """One caption per picture by the caption server, greedy or sampled as ``uae.u4g.captions`` says."""
        prompts = self._next_train_batch()
        count = len(prompts)
        prompts["__rollout_n__"] = NonTensorStack(*[1] * count)
        do_sample = bool(self.config.uae.u4g.captions.do_sample)
        prompts["__do_sample__"] = NonTensorStack(*[do_sample] * count)
        self._submit_batch_to_rollout(prompts)
        self.on_sample_begin()
        batch, _ = self.replay_buffer.sample(global_steps=self.global_steps, partition_id="train", batch_size=count)
        self.on_sample_end()
        return canonical_order(batch, fetch(batch, ["index"])["index"])

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        if self.schedule.stage(global_steps) != "u4g":
            super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
            return
        metrics.update({f"timing_s/{phase}": value for phase, value in timing_raw.items()})
        metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        self.note_speed(metrics, timing_raw, int(metrics["train/drawn_pictures"]))
        self.say_step(global_steps, f"u4g, {policy_line(metrics)}")

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict, rollout_data_dir: str) -> None:
        if self.schedule.stage(self.global_steps) == "g4u":
            super()._log_rollout_data(batch, timing_raw, rollout_data_dir)
        else:
            self.log_reconstructions(timing_raw, rollout_data_dir)


def beside_captions(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of the policy's step beside those of the captioner's: ``drawing/...`` is of drawings, whose group is a
    caption, what ``reward/...`` is of captions, whose group is a picture. The captions are the same."""
    return {
        name.replace("reward/", "drawing/", 1) if name.startswith("reward/") else name: value
        for name, value in metrics.items()
        if not name.startswith("caption/")
    }
