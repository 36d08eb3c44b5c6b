# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder policy's worker: captions, samples, rewards and updates on one GPU, trajectories never leave it.

Shape legend: N samples of this rank, B of an update, K steps of the window, T drawn noise levels, C H W latents.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor, nn
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.config import TrainingWorkerConfig

from verl_uae.chain.draw import Drawn, FieldOf
from verl_uae.chain.records import Caption, Outcome, Sample
from verl_uae.engines.decoder_batch import stored
from verl_uae.engines.decoder_module import MODEL_TYPE
from verl_uae.engines.replica import SamplingReplica
from verl_uae.engines.together import of_all_ranks
from verl_uae.engines.update_metrics import SAMPLER_DIFFERENCE, is_left_out
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.flow.config import WindowConfig
from verl_uae.flow.matching import draw_sigmas
from verl_uae.flow.plan import SamplingPlan, make_plan
from verl_uae.flow.trajectory import Trajectory, Twins
from verl_uae.reward.step import has_groupwise
from verl_uae.seeding import generator, normal
from verl_uae.stages.common.build import DTYPES, EMA, build_training_painter, decoder_family, training_worker_config
from verl_uae.stages.common.captions import CaptionSettings, FrozenCaptioner, Messages, PromptSettings
from verl_uae.stages.common.conditioner_sync import SyncedConditioner, TakesCaptioner
from verl_uae.stages.common.config import is_joint
from verl_uae.stages.common.worker import DecoderTrainingWorker
from verl_uae.stages.u4g.config import caption_writer, chosen_objective, needs_reference, reference_guidance

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


#: Weight copy of the engine: the policy that sampled.
OLD = "old"


def worker_config(config: DictConfig, total_steps: int) -> TrainingWorkerConfig:
    """What verl's training worker needs to train the decoder as a policy.

    Args:
        config: the whole composed configuration.
        total_steps: policy steps of the run, for the learning-rate schedule.
    """
    shadows = [EMA] if config.uae.train.ema.decay > 0 else []
    if chosen_objective(config).objective.kind == "forward":
        shadows.append(OLD)
    reference = needs_reference(config)
    return training_worker_config(config, total_steps, MODEL_TYPE, shadows=shadows, keep_reference=reference)


def sampling_plan(config: DictConfig, family: DecoderFamily, iteration: int) -> SamplingPlan:
    """The plan of a batch.

    Args:
        config: the whole composed configuration.
        family: of the decoder, see :func:`~verl_uae.stages.common.build.decoder_family`.
        iteration: number of the policy batch, from 0.
    """
    u4g = config.uae.u4g
    return make_plan(
        family.sigmas(u4g.num_steps, config.uae.decoder.height, config.uae.decoder.width, u4g.table),
        u4g.kernel,
        u4g.noise_level,
        WindowConfig(**u4g.window),
        iteration=iteration,
        seed=config.uae.seed,
        guidance=u4g.guidance,
        reduction=u4g.reduction,
    )


def preview_plan(config: DictConfig, family: DecoderFamily) -> SamplingPlan | None:
    """The plan of candidates that are drawn for their rewards alone; None where they are drawn as they train."""
    u4g, decoder = config.uae.u4g, config.uae.decoder
    if u4g.pool.steps is None:
        return None
    return SamplingPlan.ode(family.sigmas(u4g.pool.steps, decoder.height, decoder.width, u4g.table), u4g.guidance)


def build_captions(config: DictConfig, device: str) -> FrozenCaptioner | None:
    """The frozen captioner of stage u4g; None where captions come from elsewhere."""
    if caption_writer(config) != "ranks":
        return None
    path, dtype = config.actor_rollout_ref.model.path, DTYPES[config.uae.u4g.captions.dtype]
    return FrozenCaptioner(path, caption_settings(config), dtype=dtype, device=device)


def caption_settings(config: DictConfig) -> CaptionSettings:
    """How captions of stage u4g are written."""
    captions = config.uae.u4g.captions
    return CaptionSettings(
        seed=config.uae.seed,
        prompt_length=config.data.max_prompt_length,
        response_length=config.data.max_response_length,
        do_sample=captions.do_sample,
        temperature=captions.temperature,
        batch_size=captions.batch_size,
        prompt=PromptSettings(
            config.actor_rollout_ref.model.get("custom_chat_template"),
            dict(config.data.get("apply_chat_template_kwargs") or {}),
            dict(config.data.get("mm_processor_kwargs") or {}),
        ),
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rank draws and trains which picture of a batch, in which update.

    Pictures are numbered sample by sample: number = sample * n + place. Update u trains the places
    [u n / U, (u + 1) n / U) of every sample, so each update sees all groups. Within an update the ranks take equal,
    consecutive shares. A rank draws its pictures in the order in which it trains them, so micro-batches are the same.

    Raises:
        ValueError: if the ranks' shares are not equal, or not every picture has its candidate.
    """

    sources: int
    members: int
    """n, size of a group."""
    updates: int
    """U, optimiser updates."""
    ranks: int
    candidates: tuple[int, ...] = ()
    """Which candidate of its sample a picture is, by number, where some were chosen; none: the place is the member."""

    def __post_init__(self) -> None:
        if self.members % self.updates or self.sources * self.members // self.updates % self.ranks:
            raise ValueError(
                f"{self.sources} pictures x {self.members} samples do not split evenly into {self.updates} updates "
                f"on {self.ranks} ranks"
            )
        if self.candidates and len(self.candidates) != self.sources * self.members:
            raise ValueError(f"{len(self.candidates)} candidates for {self.sources} x {self.members} pictures")

    def member(self, number: int) -> int:
        """What names the noise of a picture within its sample: the same member has the same noise, chosen or not."""
        return self.candidates[number] if self.candidates else number % self.members

    @property
    def per_update(self) -> int:
        """Samples of one rank in one update."""
        return self.sources * self.members // self.updates // self.ranks

    def of_rank(self, rank: int) -> list[int]:
        """Numbers of a rank's samples, update after update."""
        return [number for update in range(self.updates) for number in self.of_update(update, rank)]

    def of_update(self, update: int, rank: int) -> list[int]:
        """Numbers of a rank's samples in an update."""
        width = self.members // self.updates
        numbers = [
            source * self.members + member
            for source in range(self.sources)
            for member in range(update * width, (update + 1) * width)
        ]
        return numbers[rank * self.per_update : (rank + 1) * self.per_update]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a rank keeps of the batch drawn last."""

    layout: Layout
    plan: SamplingPlan
    step: int
    samples: Sequence[Sample]
    conditions: Sequence[Condition]
    """One row for each of the rank's pictures, in the order of ``layout.of_rank``."""
    trajectory: Trajectory
    regrouped: bool = False
    """They were drawn in other micro-batches than those that they train in."""


class DecoderPolicyWorker(TakesCaptioner, DecoderTrainingWorker):
    """Trains the decoder as a policy, and samples from it.

    Sampling and training use the same module, weights and micro-batches: the first update of a batch has a ratio of
    exactly 1.

    Args:
        config: the whole composed configuration.
        total_steps: policy steps of the run.
    """

    _rollout: Rollout | None = None
    _candidates: Mapping[tuple[int, int], tuple[Condition, Trajectory]] = MappingProxyType({})
    """Of this rank, drawn under the plan of training: (number of the sample, member) to condition and trajectory."""

    def __init__(self, config: DictConfig, total_steps: int) -> None:
        super().__init__(config, worker_config(config, total_steps))
        self.objective = chosen_objective(config)

    @property
    def _forward(self) -> bool:
        """Whether the objective is on the forward process."""
        return self.objective.objective.kind == "forward"

    @property
    def _drawing(self) -> str | None:
        """Weight copy that draws; None for the current weights."""
        return OLD if self._forward and self.run.uae.u4g.objective.draw_from == "old" else None

    def _unconditional(self) -> Condition:
        """Condition of the unconditional branch, one row."""
        return self.painter.conditions.negative(self.run.uae.decoder.negative_prompt)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Load all models."""
        self.reset()
        self.set_loss_fn(self.objective)
        device = get_device_name()
        self.captions = build_captions(self.run, device)
        self.family = decoder_family(self.run)
        self.painter = build_training_painter(self.run, self.captions, self.family, device)
        if self.run.uae.conditioner.weights == "synced":
            # Elsewhere a decoder worker measures.
            measures = self.rank == 0 and is_joint(self.run)
            self.synced = SyncedConditioner(self.painter.conditions, device, measures=measures)
        self.replica = SamplingReplica(self.engine) if self.run.uae.u4g.sampler == "replica" else None
        self._put_away()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def write_captions(self, prompts: Sequence[Messages], infos: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """Captions of this rank's share of the prompts: every ``world_size``-th, from its own rank on."""
        assert self.captions is not None
        mine = slice(self.rank, None, self.world_size)
        with self._frozen_on_device():
            return self.captions.write(prompts[mine], infos[mine])

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def explore(
        self, samples: Sequence[Sample], layout: Layout, plan: dict[str, Any], step: int
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Draw and score this rank's pictures of a batch and keep their trajectories for :meth:`improve`.

        Returns:
            Outcomes in the order of ``layout.of_rank(rank)``, and seconds by phase.
        """
        chosen = SamplingPlan.from_dict(plan)
        pictures = [(samples[number // layout.members], layout.member(number)) for number in layout.of_rank(self.rank)]
        drawn = self._draw(chosen, pictures, step)
        self._rollout = Rollout(layout, chosen, step, samples, drawn.conditions, drawn.trajectory)
        return drawn.outcomes, drawn.seconds

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def draw_candidates(
        self,
        samples: Sequence[Sample],
        pictures: Sequence[tuple[int, int]],
        plan: dict[str, Any],
        step: int,
        keep: bool,
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Draw and score this rank's share of the candidates.

        Args:
            samples: pictures with captions.
            pictures: number of the sample and member of every candidate, of all ranks.
            plan: how to draw.
            step: training step.
            keep: the plan is that of training, and some of them will train: see :meth:`adopt`.

        Returns:
            Outcomes of a consecutive share, which is rank after rank the order of ``pictures``, and seconds by phase.
        """
        size, share = int(self.run.uae.train.micro_batch_size), math.ceil(len(pictures) / self.world_size)
        mine = list(pictures[self.rank * share : (self.rank + 1) * share])
        # All ranks make equally many velocity calls, of whole micro-batches.
        filled = mine + [pictures[0]] * (math.ceil(share / size) * size - len(mine))
        wanted = [(samples[number], member) for number, member in filled]
        drawn = self._draw(SamplingPlan.from_dict(plan), wanted, step)
        if keep:
            kept = {
                name: (drawn.conditions[row], drawn.trajectory.rows(slice(row, row + 1)))
                for row, name in enumerate(mine)
            }
            self._candidates = {**self._candidates, **kept}
        return drawn.outcomes[: len(mine)], drawn.seconds

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def adopt(
        self,
        samples: Sequence[Sample],
        layout: Layout,
        plan: dict[str, Any],
        step: int,
        pictures: Sequence[tuple[int, int]],
    ) -> None:
        """Keep candidates for :meth:`improve` in place of pictures that :meth:`explore` draws, and forget the others.

        Those that another rank trains go there.

        Args:
            samples: those that train.
            layout: of the pictures that train.
            plan: that the candidates were drawn with.
            step: training step.
            pictures: which candidate each picture of the layout is, by number, as :meth:`draw_candidates` was given it.
        """
        found, self._candidates = dict(self._candidates), {}
        trains = {pictures[number]: rank for rank in range(layout.ranks) for number in layout.of_rank(rank)}
        # In memory of their own: what is sent of a part of a tensor is all of it.
        sent = {
            name: (Condition.stack([condition]), Trajectory.join([trajectory]))
            for name, (condition, trajectory) in found.items()
            if trains.get(name, self.rank) != self.rank
        }
        for received in of_all_ranks(sent):
            found.update(received)
        rows = [found[pictures[number]] for number in layout.of_rank(self.rank)]
        self._rollout = Rollout(
            layout,
            SamplingPlan.from_dict(plan),
            step,
            samples,
            [condition for condition, _ in rows],
            Trajectory.join([trajectory for _, trajectory in rows]),
            regrouped=True,
        )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def improve(self, advantages: Sequence[float], weights: Sequence[float], first_update: int) -> list[dict]:
        """Update the policy on the batch drawn last.

        Args:
            advantages: of all samples of all ranks, by number.
            weights: 1 for samples that train, 0 for the others, by number.
            first_update: updates of the policy before this batch.

        Returns:
            verl's metrics of each update.
        """
        rollout, self._rollout = self._rollout, None
        assert rollout is not None
        layout, batches = rollout.layout, []
        for update in range(layout.updates):
            numbers = layout.of_update(update, self.rank)
            rows = slice(update * len(numbers), (update + 1) * len(numbers))
            total = sum(weights[n] for r in range(layout.ranks) for n in layout.of_update(update, r))
            data = self._mini_batch(rollout, rows, numbers)
            data["advantage_B"] = torch.tensor([advantages[n] for n in numbers], dtype=torch.float32)
            data["weight_B"] = torch.tensor([weights[n] for n in numbers], dtype=torch.float32)
            tu.assign_non_tensor(data, total_weight=total)
            batches.append(data)
        apart = self._old_values(batches, rollout.regrouped)
        metrics = []
        with self.engine.train_mode():
            for update, data in enumerate(batches):
                tu.assign_non_tensor(data, update_lr_scheduler=update == layout.updates - 1, disable_auto_offload=True)
                metrics.append(dict(tu.get(self.train_batch(data), "metrics")) | (apart if update else {}))
                self._average(first_update + update + 1, metrics[-1])
            if self._forward and not all(map(is_left_out, metrics)):
                self.engine.shadow(OLD).update(self.run.uae.u4g.objective.old_decay)
        return metrics

    def _draw(self, plan: SamplingPlan, pictures: Sequence[tuple[Sample, int]], step: int) -> Drawn:
        """Draw and score members of samples."""
        keep = has_groupwise(self.run)
        draws = [self.named(sample, step, member, want_reconstruction=keep) for sample, member in pictures]
        with self._frozen_on_device(), self.engine.eval_mode(), self._weights(self._drawing):
            if reference_guidance(self.run) != 1.0:
                # Kept from here on: the update asks for it when what encodes it may be on the host.
                self._unconditional()
            shared = bool(self.run.uae.u4g.shared_prefix)
            return self.painter.draw(self._field(), plan, draws, collective=True, shared_prefix=shared)

    def _field(self) -> FieldOf:
        """What draws with the engine's current weights."""
        if self.replica is None:
            return self.engine.field
        self.replica.refresh()
        return self.replica.field

    def _frozen(self) -> list[Callable[[str], Any]]:
        return super()._frozen() + ([] if self.captions is None else [self.captions.to])

    def _frozen_modules(self) -> list[nn.Module]:
        return super()._frozen_modules() + ([] if self.captions is None else [self.captions.engine.model])

    def _move_frozen(self, device: str) -> None:
        if self.replica is not None and device == "cpu":
            self.replica.release()
        super()._move_frozen(device)

    def _mini_batch(self, rollout: Rollout, rows: slice, numbers: Sequence[int]) -> TensorDict:
        layout, plan, trajectory = rollout.layout, rollout.plan, rollout.trajectory
        fields: dict[str, Tensor] = stored(Condition.stack(rollout.conditions[rows]))
        if self._forward:
            fields["x0_BCHW"] = trajectory.final_BCHW[rows]
            names = [(rollout.samples[n // layout.members].caption.digest, layout.member(n)) for n in numbers]
            fields |= self._forward_draws(names, plan, rollout.step)
            if self.objective.grouped:
                fields["group_B"] = torch.tensor([number // layout.members for number in numbers])
        else:
            for field, source in _KEPT.items():
                fields[field] = getattr(trajectory, source)[rows]
            if self.run.uae.u4g.shared_prefix:
                members = ((rollout.samples[n // layout.members], layout.member(n)) for n in numbers)
                kinds = Twins.of([self.named(sample, rollout.step, member).origin for sample, member in members]).kind
                fields["origin_B"] = torch.tensor(kinds)
        data = TensorDict(fields, batch_size=len(numbers))
        u4g = self.run.uae.u4g
        kl = u4g.reference_kl
        tu.assign_non_tensor(
            data,
            plan=plan.to_dict(),
            plan_digest=plan.digest,
            micro_batch_size_per_gpu=self.run.uae.train.micro_batch_size,
            reference_kl={
                "form": kl.form,
                "coef": float(kl.coef),
                "floor": kl.floor,
                "advantage_max": float(u4g.advantage.clamp or 1.0),
                "guidance": kl.guidance,
            },
            norm_guard=float(u4g.objective.norm_guard),
            step_weights=u4g.step_weights,
            replay_steps=self._replayed(plan),
        )
        if plan.guidance != 1.0 or reference_guidance(self.run) != 1.0:
            tu.assign_non_tensor(data, negative=self._unconditional())
        return data

    def _forward_draws(self, names: Sequence[tuple[str, int]], plan: SamplingPlan, step: int) -> dict[str, Tensor]:
        """Fresh noise and noise levels of forward-process objectives, by name: of a picture, or of its group."""
        seed, settings = self.run.uae.seed, self.run.uae.u4g.objective
        count = settings.num_sigmas
        shape = (count, *self.painter.settings.latent_shape)
        groups = [name[:1] for name in names]
        of_noise = groups if settings.share == "noise" else names
        of_levels = names if settings.share == "none" else groups
        return {
            "noise_BTCHW": torch.stack([normal(shape, seed, "u4g forward noise", step, *name) for name in of_noise]),
            "sigma_BT": torch.stack(
                [draw_sigmas(plan.sigmas, count, generator(seed, "u4g sigma", step, *name)) for name in of_levels]
            ),
        }

    def _replayed(self, plan: SamplingPlan) -> int:
        """Places of a micro-batch that go through the model together: at most those that are not alone."""
        u4g = self.run.uae.u4g
        places = int(u4g.objective.num_sigmas) if self._forward else len(plan.window)
        places = max(1, places - bool(u4g.shared_prefix))
        return places if u4g.replay_steps is None else min(int(u4g.replay_steps), places)

    @torch.no_grad()
    def _old_values(self, batches: Sequence[TensorDict], regrouped: bool = False) -> dict[str, float]:
        """See to it that the batches have the old policy's values as the trained module says them.

        Forward objectives need velocities of a weight copy. For those on transitions sampling has said them where it is
        the same module in the same micro-batches; it rounds otherwise where a replica sampled, candidates were chosen,
        or training takes several places at once. Then the pass of the first batch says them itself, since no update has
        moved the weights before, and those of the later batches are computed now.

        Args:
            batches: of the updates, in order.
            regrouped: whether sampling had other micro-batches.

        Returns:
            How far what sampling said of the later batches is from these: the largest difference on any rank.
        """
        if self._forward:
            with self.engine.eval_mode(), self._weights(OLD):
                for data in batches:
                    self.engine.recompute_old(data)
            return {}
        if not regrouped and self.replica is None and int(tu.get_non_tensor_data(batches[0], "replay_steps", 1)) == 1:
            return {}
        tu.assign_non_tensor(batches[0], on_policy=True)
        later = batches[1:]
        if not later:
            return {}
        drawn = [data["old_log_prob_BK"] for data in later]
        with self.engine.eval_mode(), self._weights(None):
            for data in later:
                self.engine.recompute_old(data)
        pairs = zip(later, drawn, strict=True)
        apart = [(data["old_log_prob_BK"] - log_prob)[data["weight_B"] > 0].abs().flatten() for data, log_prob in pairs]
        largest = torch.cat([torch.zeros(1), *apart]).max().to(get_device_id())
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return {f"{SAMPLER_DIFFERENCE}/max": float(largest)}


#: Tensors of a mini-batch -> fields of a trajectory.
_KEPT = {
    "x_BKCHW": "x_BKCHW",
    "x_next_BKCHW": "x_next_BKCHW",
    "old_mean_BKCHW": "mean_BKCHW",
    "old_log_prob_BK": "log_prob_BK",
}
