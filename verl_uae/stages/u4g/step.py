# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One step of the decoder policy, and its validation: what stage u4g and the unified stage share.

Shape legend: N samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from omegaconf import DictConfig
from verl.single_controller.ray import RayResourcePool
from verl.utils.debug import marked_timer

from verl_uae.chain.records import Caption, Outcome, Sample, prompt_text
from verl_uae.checkpoints.record import DecoderCheckpoints
from verl_uae.data.images import source_digest
from verl_uae.engines.update_metrics import update_metrics
from verl_uae.errors import DataError
from verl_uae.flow.advantage import group_advantage
from verl_uae.flow.plan import SamplingPlan
from verl_uae.reward.record import to_tensors
from verl_uae.stages.common.captions import CaptionCache, Messages, column_caption
from verl_uae.stages.common.group import DecoderTrainingGroup, interleave
from verl_uae.stages.common.outcomes import outcome_metrics, usable_members
from verl_uae.stages.common.signals import RewardSignals
from verl_uae.stages.common.supervised import SupervisedTrainer
from verl_uae.stages.u4g.servers import CaptionServers
from verl_uae.stages.u4g.worker import DecoderPolicyWorker, Layout, sampling_plan

logger = logging.getLogger(__name__)


class PolicyGroup(DecoderTrainingGroup):
    """All ranks of the decoder policy.

    Args:
        config: the whole composed configuration.
        pool: verl resource pool the ranks live in.
        total_steps: policy steps of the run.
    """

    def __init__(self, config: DictConfig, pool: RayResourcePool, total_steps: int) -> None:
        super().__init__(DecoderPolicyWorker, config, pool, total_steps)

    def plan(self, iteration: int) -> SamplingPlan:
        """The sampling plan of a policy batch, counted from 0."""
        return sampling_plan(self.config, self.family, iteration)

    def write_captions(self, prompts: Sequence[Messages], infos: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """Captions of all prompts with the ``extra_info`` of their rows, in order."""
        return interleave(self.call("write_captions", ray.put(list(prompts)), ray.put(list(infos))), len(prompts))

    def explore(
        self, samples: Sequence[Sample], layout: Layout, plan: SamplingPlan, step: int
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Draw and score a batch; outcomes by picture number, and the seconds of the slowest rank by phase."""
        answers = self.call("explore", ray.put(list(samples)), layout, plan.to_dict(), step)
        outcomes: dict[int, Outcome] = {}
        seconds: dict[str, float] = {}
        for rank, (found, spent) in enumerate(answers):
            outcomes.update(zip(layout.of_rank(rank), found, strict=True))
            seconds = {phase: max(seconds.get(phase, 0.0), value) for phase, value in spent.items()}
        return [outcomes[number] for number in range(len(outcomes))], seconds

    def improve(self, advantages: Sequence[float], weights: Sequence[float], first_update: int) -> list[dict]:
        """Update the policy on the batch drawn last; verl's metrics of each update, equal on all ranks."""
        return self.call("improve", list(advantages), list(weights), first_update)[0]

    def state_ref(self) -> Any:
        """Ray reference to the averaged weights; they do not pass through the controller."""
        return self.call("decoder_state")[0][0]


@dataclass(frozen=True, slots=True)
class Explored:
    """A batch of the policy as its ranks drew and scored it."""

    samples: Sequence[Sample]
    layout: Layout
    plan: SamplingPlan
    policy_step: int
    """Number of the policy's step in the run, from 0."""
    outcomes: list[Outcome]
    """By picture number, without groupwise terms."""
    seconds: dict[str, float]
    """Of the slowest rank by phase."""

    @property
    def members(self) -> list[Sample]:
        """What each picture was drawn from."""
        return [sample for sample in self.samples for _ in range(self.layout.members)]


@dataclass(frozen=True, slots=True)
class PolicyUpdate:
    """What an update of the policy takes beside the trajectories, which are on the ranks."""

    advantages: list[float]
    """By picture number."""
    weights: list[float]
    """1 for pictures that train, 0 for the others."""
    first_update: int
    """Updates of the policy before this batch."""
    metrics: dict[str, float]
    seconds: dict[str, float]
    """Of drawing and scoring, of the slowest rank by phase."""


class PolicyMixin(RewardSignals, DecoderCheckpoints, SupervisedTrainer):
    """Starts the policy's workers and runs its steps."""

    config: DictConfig
    global_steps: int
    _dump_generations: Callable[..., None]
    """verl's."""
    servers: CaptionServers | None = None
    """What writes captions in place of the policy's ranks."""
    _generations: list[dict[str, Any]]
    """Rows of the last batch, see :func:`~verl_uae.stages.u4g.step.generation_rows`."""

    def start_policy(self, pool: RayResourcePool, total_steps: int) -> None:
        """Start the workers beside whatever else loads; ``learner.wait_until_loaded()`` waits for them."""
        self.learner = PolicyGroup(self.config, pool, total_steps)
        self.captions = CaptionCache(self.config.uae.u4g.captions.cache_size)

    def frozen_captions(self, prompts: Sequence[Messages], infos: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """Captions of stage u4g: from the dataset's column, or of the frozen captioner, once per image."""
        if self.config.uae.u4g.captions.source == "column":
            return [column_caption(prompt, info) for prompt, info in zip(prompts, infos, strict=True)]
        names = [(picture_name(prompt, info), prompt_text(prompt)) for prompt, info in zip(prompts, infos, strict=True)]
        kept = {name: self.captions.get(name) for name in names}
        missing = [position for position, name in enumerate(names) if kept[name] is None]
        if missing:
            written = (self.servers or self.learner).write_captions(
                [prompts[position] for position in missing], [infos[position] for position in missing]
            )
            for position, caption in zip(missing, written, strict=True):
                self.captions.put(names[position], caption)
                kept[names[position]] = caption
        return [caption for caption in (kept[name] for name in names) if caption is not None]

    def improve_policy(
        self, prompts: Sequence[Messages], samples: Sequence[Sample], policy_step: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Explore, score and update on one batch of pictures.

        Args:
            prompts: of the captioner, for the files of rollouts.
            samples: pictures with captions.
            policy_step: number of the policy's step in the run, from 0.

        Returns:
            metrics, and seconds by phase.

        Raises:
            RewardError: too few pictures have a reward.
        """
        update = self.judge_policy(self.explore_policy(samples, policy_step), prompts)
        found, seconds = self.update_policy(update)
        return {**update.metrics, **found}, {**update.seconds, **seconds}

    def explore_policy(self, samples: Sequence[Sample], policy_step: int) -> Explored:
        """Draw and score; see :meth:`improve_policy`."""
        u4g = self.config.uae.u4g
        layout = Layout(len(samples), u4g.samples_per_caption, u4g.updates_per_rollout, self.learner.ranks)
        plan = self.learner.plan(policy_step)
        outcomes, phases = self.learner.explore(samples, layout, plan, policy_step + 1)
        self.losses.check(outcomes)
        return Explored(samples, layout, plan, policy_step, outcomes, phases)

    def judge_policy(self, explored: Explored, prompts: Sequence[Messages]) -> PolicyUpdate:
        """Advantages of a batch within the drawings of each caption, and its metrics; see :meth:`improve_policy`."""
        samples, layout, plan = explored.samples, explored.layout, explored.plan
        groups = [str(number // layout.members) for number in range(len(explored.outcomes))]
        signals, drawn = self.signals("u4g"), self.compare(explored, groups)
        outcomes = signals.recompose(drawn, groups)
        self._generations = generation_rows(prompts, samples, outcomes)
        usable = usable_members(outcomes, groups)
        advantage_N, metrics = self._advantages(outcomes, usable, groups)
        captions, min_std = [sample.caption for sample in samples], self.config.uae.u4g.advantage.min_std
        metrics.update(outcome_metrics(outcomes, captions, groups, min_std=min_std))
        metrics.update(signals.metrics(drawn, metrics))
        metrics["train/window_start"] = float(plan.window[0]) if plan.window else -1.0
        weights = [float(keep) for keep in usable]
        first_update = explored.policy_step * layout.updates
        return PolicyUpdate(advantage_N.tolist(), weights, first_update, metrics, explored.seconds)

    def compare(self, explored: Explored, groups: Sequence[str]) -> list[Outcome]:
        """Outcomes of a batch with the terms that compare the pictures of these groups, if there are any; what that
        takes is added to the seconds of the batch.

        Raises:
            RewardError: too few pictures have a reward then.
        """
        if not self.group_rewards.active:
            return explored.outcomes
        with marked_timer("score", explored.seconds), marked_timer("draw", explored.seconds):
            outcomes = self.group_rewards.add(explored.outcomes, explored.members, groups)
        self.losses.check(outcomes)
        return outcomes

    def update_policy(self, update: PolicyUpdate) -> tuple[dict[str, float], dict[str, float]]:
        """Update on the batch drawn last; metrics and seconds, see :meth:`improve_policy`."""
        seconds: dict[str, float] = {}
        with marked_timer("update_policy", seconds), self.updating():
            updates = self.learner.improve(update.advantages, update.weights, update.first_update)
        spent = update.seconds["draw"] + seconds["update_policy"]
        return {**update_metrics(updates), "train/seconds_per_picture": spent / len(update.weights)}, seconds

    def _advantages(
        self, outcomes: Sequence[Outcome], usable: Sequence[bool], groups: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        settings = self.config.uae.u4g.advantage
        reward_N, _ = to_tensors([outcome.record for outcome in outcomes])
        raw_N, _ = group_advantage(
            reward_N, torch.tensor(usable), list(groups), min_std=settings.min_std, std=settings.std
        )
        advantage_N = raw_N if settings.clamp is None else raw_N.clamp(-settings.clamp, settings.clamp)
        return advantage_N, {
            "train/advantage/abs_max": float(raw_N.abs().max()),
            "train/advantage/clamped_frac": float((raw_N != advantage_N).float().mean()),
        }

    def log_reconstructions(self, timing_raw: dict, folder: str) -> None:
        """Write what the last batch drew, as verl writes rollouts."""
        with marked_timer("dump_rollout_generations", timing_raw):
            self._dump_generations(**dump_arguments(self._generations), dump_path=folder)

    def evaluate_policy(
        self, samples: Sequence[Sample], policy_step: int, probes: int
    ) -> tuple[list[Outcome], list[bytes | None]]:
        """Outcomes of the evaluation sampler, and pictures of the training sampler for the first ``probes``."""
        probes = min(probes, len(samples))
        outcomes = self.learner.evaluate(samples, probes)
        explored: list[bytes | None] = [None] * len(samples)
        plan = self.learner.plan(policy_step)
        if probes and plan.window:
            explored[:probes] = [outcome.picture for outcome in self.learner.evaluate(samples[:probes], probes, plan)]
        return outcomes, explored


def picture_name(prompt: Messages, info: Mapping[str, Any]) -> str | None:
    """What a picture's caption is kept under: its digest; None if it is damaged."""
    try:
        return source_digest(prompt, info)
    except DataError:
        # Its caption fails, and failed ones are not kept.
        return None


def generation_rows(
    prompts: Sequence[Messages], samples: Sequence[Sample], outcomes: Sequence[Outcome]
) -> list[dict[str, Any]]:
    """Rows of a batch.

    Args:
        prompts: of the captioner.
        samples: pictures with captions, one per prompt.
        outcomes: of equally many reconstructions of each sample, sample by sample.
    """
    members = len(outcomes) // max(1, len(samples))
    rows = []
    for number, outcome in enumerate(outcomes):
        sample, record = samples[number // members], outcome.record
        rows.append(
            {
                "input": "\n".join(text.replace("\x1f", " ") for _, text in prompt_text(prompts[number // members])),
                "output": sample.caption.text,
                "gts": sample.row.get("ground_truth"),
                # A missing reward is not 0.
                "score": record.value,
                "digest": sample.caption.digest,
                "member": number % members,
                "status": str(record.status),
                "reason": record.reason or "",
                **{f"term_{name}": value for name, value in record.terms.items()},
            }
        )
    return rows


def dump_arguments(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arguments of verl's ``_dump_generations``, but for the folder; a term that a row lacks is null there."""
    first = ("input", "output", "gts", "score")
    names = dict.fromkeys(name for row in rows for name in row if name not in first)
    return {
        "inputs": [row["input"] for row in rows],
        "outputs": [row["output"] for row in rows],
        "gts": [row["gts"] for row in rows],
        "scores": [row["score"] for row in rows],
        "reward_extra_infos_dict": {name: [row.get(name) for row in rows] for name in names},
    }
