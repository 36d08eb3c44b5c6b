# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A rank's mini-batch of the decoder policy, cut into micro-batches and into the places the velocity is trained at.

Shape legend: B samples, K trained places of a sample (steps of the window, or drawn noise levels), L text positions,
E language-model width, C H W latent channels, height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from verl_uae.families.family import Condition
from verl_uae.flow.advantage import unit_reward
from verl_uae.flow.config import FORWARD_FORMS, PENALTY_FORMS
from verl_uae.flow.divergence import reference_penalty, velocity_distance
from verl_uae.flow.kernels import step, transition_mean
from verl_uae.flow.matching import forward_noise
from verl_uae.flow.objective import ForwardInputs, TransitionInputs
from verl_uae.flow.objective.types import Kind
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import Twins

#: Tensors of a mini-batch by kind of objective; those of OLD come from the policy that sampled.
INPUTS: Mapping[str, tuple[str, ...]] = {
    "transition": ("states_BLE", "length_B", "weight_B", "advantage_B", "x_BKCHW", "x_next_BKCHW"),
    "forward": ("states_BLE", "length_B", "weight_B", "advantage_B", "x0_BCHW", "noise_BTCHW", "sigma_BT"),
}
#: Whole numbers, read on the host.
COUNTS = ("length_B", "group_B", "origin_B")
OLD: Mapping[str, tuple[str, ...]] = {
    "transition": ("old_log_prob_BK", "old_mean_BKCHW"),
    "forward": ("old_velocity_BTCHW",),
}


def stored(condition: Condition) -> dict[str, Tensor]:
    """A condition as tensors of a mini-batch: states_BLE, (B, L, ...), and length_B, whole numbers."""
    return {"states_BLE": condition.states, "length_B": torch.tensor(condition.lengths)}


def on_device(micro: TensorDict, device: Any) -> TensorDict:
    """A micro-batch on a device; the lengths of its condition stay on the host, where they are read."""
    host = micro.exclude("length_B")
    moved = host.to(device)
    if "length_B" in micro.keys():
        tu.assign_non_tensor(moved, lengths=tuple(micro["length_B"].tolist()))
    return moved


def read_condition(micro: TensorDict) -> Condition:
    """Inverse of :func:`stored` for a part of the rows, moved by :func:`on_device` or not: as long as the longest of
    these."""
    lengths = tu.get_non_tensor_data(micro, "lengths", None)
    lengths = micro["length_B"].tolist() if lengths is None else lengths
    return Condition(micro["states_BLE"], tuple(lengths)).trimmed()


@dataclass(frozen=True)
class ReferencePenalty:
    """Penalty on the distance to the policy before RL: ``uae.u4g.reference_kl``."""

    form: str = "exact"
    coef: float = 0.0
    """Weight, at least 0; of the best samples where there is a floor."""
    floor: float | None = None
    """Weight of the worst samples; None: that of the best."""
    advantage_max: float = 1.0
    """Advantage of the best, > 0; minus that of the worst. Read with a floor."""
    guidance: float | None = None
    """Of the reference; None: the plan's."""

    def weight(self, advantage_B: Tensor) -> Tensor | float:
        """Weight of each sample's penalty, shape (B,), or one for all."""
        if self.floor is None:
            return self.coef
        return self.floor + (self.coef - self.floor) * unit_reward(advantage_B, self.advantage_max)


@dataclass(frozen=True)
class DecoderBatch:
    """What :meth:`~verl_uae.engines.decoder.DecoderEngine.forward_backward_batch` is given, checked."""

    kind: Kind
    plan: SamplingPlan
    fields: dict[str, Tensor]
    micro_batch_size: int
    total_weight: float
    """Sum of the weights of all ranks."""
    penalty: ReferencePenalty
    negative: Condition | None
    """Of the unconditional branch, one row."""
    replay_steps: int = 1
    """Places of a micro-batch that go through the model together, at least 1."""
    norm_guard: float = 0.0
    """Weight of the hinge on the velocity's length, at least 0; forward objectives."""
    step_weights: tuple[float, ...] = ()
    """Weight of the objective at each place; none: 1."""
    on_policy: bool = False
    """Whether these are the weights that sampled: old values are then those of the pass itself, and what sampling
    stored is only compared with them."""

    @property
    def rows(self) -> int:
        """B, samples of this rank."""
        return len(self.fields["weight_B"])

    @property
    def places(self) -> int:
        """K, places per sample."""
        return self.fields["x_BKCHW" if self.kind == "transition" else "sigma_BT"].shape[1]

    @property
    def shares_prefix(self) -> bool:
        """Whether rows of one origin go through the model once at place 0."""
        return "origin_B" in self.fields

    @property
    def passes(self) -> list[range]:
        """The places, as many at a time as go through the model together; the last may be fewer, and a place that
        fewer rows go through is alone."""
        size, alone = self.replay_steps, int(self.shares_prefix)
        rest = [range(first, min(first + size, self.places)) for first in range(alone, self.places, size)]
        return [range(alone)] * alone + rest

    def micro_batches(self, device: Any) -> Iterator[MicroBatch]:
        """Consecutive samples, ``micro_batch_size`` at a time, on the device; sent without waiting for what it does."""
        negative = None if self.negative is None else self.negative.to(device, non_blocking=True)
        for start in range(0, self.rows, self.micro_batch_size):
            rows = slice(start, start + self.micro_batch_size)
            fields = {name: tensor[rows] for name, tensor in self.fields.items()}
            moved = {
                name: tensor if name in COUNTS else tensor.to(device, non_blocking=True)
                for name, tensor in fields.items()
            }
            twins = None
            if self.shares_prefix:
                twins = Twins.of(fields["origin_B"].tolist(), (fields["weight_B"] > 0).tolist())
            yield MicroBatch(self, moved, negative, twins)


class MicroBatch:
    """Samples that go through the model together.

    Args:
        batch: the mini-batch they are of.
        fields: its tensors, these samples only. Samples of weight 0 may hold anything, NaN included: zero times NaN
            is NaN, so they are blanked.
        negative: condition of the unconditional branch where they are, one row.
        twins: rows that go through the model once at place 0; None: there each goes for itself too.
    """

    def __init__(
        self,
        batch: DecoderBatch,
        fields: dict[str, Tensor],
        negative: Condition | None = None,
        twins: Twins | None = None,
    ) -> None:
        self.batch = batch
        self.negative = negative
        self.twins = twins
        self.valid_B = fields["weight_B"] > 0
        length_B = fields["length_B"]
        floats = {name: tensor for name, tensor in fields.items() if name not in COUNTS}
        self.fields = {name: blank(tensor, self.valid_B) for name, tensor in floats.items()}
        self.condition = Condition(self.fields["states_BLE"], tuple(length_B.tolist())).trimmed()

    def position(self, k: int) -> tuple[Tensor, Tensor]:
        """(x_BCHW, sigma_B) where the velocity of place k is asked for, fp32."""
        if self.batch.kind == "transition":
            x_BCHW = self.fields["x_BKCHW"][:, k]
            sigma = self.batch.plan.sigmas[self.batch.plan.window[k]]
            return x_BCHW, torch.full(x_BCHW.shape[:1], sigma, dtype=torch.float32, device=x_BCHW.device)
        sigma_B = self.fields["sigma_BT"][:, k]
        return forward_noise(self.fields["x0_BCHW"], self.fields["noise_BTCHW"][:, k], sigma_B), sigma_B

    def old(self, k: int, velocity_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The values of :data:`OLD` at place k if this velocity is the old policy's."""
        if self.batch.kind == "forward":
            return (velocity_BCHW,)
        taken = self._step(k, velocity_BCHW)
        return taken.log_prob_B, taken.mean_BCHW

    def inputs(
        self, k: int, velocity_BCHW: Tensor, ref_velocity_BCHW: Tensor | None = None
    ) -> TransitionInputs | ForwardInputs:
        """What an objective is given at place k. Blanked samples are their own old policy, on policy all are."""
        if self.batch.kind == "forward":
            x_BCHW, sigma_B = self.position(k)
            means_BK = self.fields.get("group_mean_BK")
            return ForwardInputs(
                velocity_BCHW=velocity_BCHW,
                old_velocity_BCHW=self._old("old_velocity_BTCHW", k, velocity_BCHW),
                x0_BCHW=self.fields["x0_BCHW"],
                x_sigma_BCHW=x_BCHW,
                sigma_B=sigma_B,
                noise_BCHW=self.fields["noise_BTCHW"][:, k],
                advantage_B=self.fields["advantage_B"],
                reference_velocity_BCHW=ref_velocity_BCHW,
                group_mean_B=None if means_BK is None else means_BK[:, k],
            )
        plan, taken, index = self.batch.plan, self._step(k, velocity_BCHW), self.batch.plan.window[k]
        return TransitionInputs(
            log_prob_B=taken.log_prob_B,
            old_log_prob_B=self._old("old_log_prob_BK", k, taken.log_prob_B),
            mean_BCHW=taken.mean_BCHW,
            old_mean_BCHW=self._old("old_mean_BKCHW", k, taken.mean_BCHW),
            x_next_BCHW=taken.x_next_BCHW,
            std=plan.coefficients(index).std,
            step_size=plan.sigmas[index] - plan.sigmas[index + 1],
            sigma=plan.sigmas[index],
            kernel=plan.kernel,
            advantage_B=self.fields["advantage_B"],
        )

    def sampler_difference(self, k: int, inputs: TransitionInputs | ForwardInputs) -> Tensor:
        """How far the log-probability of place k that sampling stored is from these, shape (B,), without gradient."""
        assert isinstance(inputs, TransitionInputs)
        return (inputs.log_prob_B.detach() - self.fields["old_log_prob_BK"][:, k]).abs()

    def penalty(self, k: int, velocity_BCHW: Tensor, ref_velocity_BCHW: Tensor) -> Tensor:
        """Distance to the reference at place k, shape (B,), with gradient; not weighted yet."""
        x_BCHW, sigma_B = self.position(k)
        if self.batch.kind == "forward":
            squared_B = velocity_distance(velocity_BCHW, ref_velocity_BCHW)
            return squared_B * sigma_B.square() if self.batch.penalty.form == "x0" else squared_B
        plan, index = self.batch.plan, self.batch.plan.window[k]
        c = plan.coefficients(index)
        return reference_penalty(
            self.batch.penalty.form,  # type: ignore[arg-type]
            transition_mean(c, x_BCHW, velocity_BCHW),
            transition_mean(c, x_BCHW, ref_velocity_BCHW),
            c.std,
            plan.sigmas[index] - plan.sigmas[index + 1],
            velocity_BCHW,
            ref_velocity_BCHW,
            plan.sigmas[index],
        )

    def _step(self, k: int, velocity_BCHW: Tensor) -> Any:
        x_BCHW, x_next_BCHW = self.fields["x_BKCHW"][:, k], self.fields["x_next_BKCHW"][:, k]
        plan = self.batch.plan
        c = plan.coefficients(plan.window[k])
        return step(c, x_BCHW, velocity_BCHW, x_next_BCHW=x_next_BCHW, reduction=plan.reduction)

    def _old(self, name: str, k: int, own: Tensor) -> Tensor:
        """A value of the old policy at place k, which may be the one at hand."""
        if self.batch.on_policy:
            return own.detach()
        old = self.fields[name][:, k]
        return torch.where(_rows(self.valid_B, old), old, own.detach())


def read_batch(data: TensorDict, *, with_old: bool = True) -> DecoderBatch:
    """Check and unpack a mini-batch.

    Args:
        data: see :meth:`~verl_uae.engines.decoder.DecoderEngine.forward_backward_batch`.
        with_old: whether the tensors of :data:`OLD` must be there.

    Raises:
        PlanMismatch: the samples were drawn with another plan.
        TypeError: a tensor is not fp32.
        ValueError: something is missing, or shapes do not fit the plan.
    """
    kind: Kind = "forward" if "x0_BCHW" in data.keys() else "transition"
    on_policy = with_old and bool(tu.get_non_tensor_data(data, "on_policy", False))
    # On policy the stored log-probabilities alone are looked at.
    names = INPUTS[kind] + (OLD[kind][: 1 if on_policy else None] if with_old else ())
    names += tuple(name for name in ("group_B", "origin_B") if name in data.keys())
    missing = [name for name in names if name not in data.keys()]
    if missing:
        raise ValueError(f"a mini-batch of kind {kind!r} lacks {', '.join(missing)}")
    plan = SamplingPlan.from_dict(_required(data, "plan"))
    plan.check(_required(data, "plan_digest"))
    fields = {name: data[name] for name in names}
    for name, tensor in fields.items():
        if tensor.dtype != torch.float32 and name not in ("states_BLE", *COUNTS):
            raise TypeError(f"{name} must be torch.float32, got {tensor.dtype}")
    penalty = ReferencePenalty(**(tu.get_non_tensor_data(data, "reference_kl", None) or {}))
    weigh = tu.get_non_tensor_data(data, "step_weights", "uniform")
    batch = DecoderBatch(
        kind=kind,
        plan=plan,
        fields=fields,
        micro_batch_size=int(_required(data, "micro_batch_size_per_gpu")),
        total_weight=float(_required(data, "total_weight")) if with_old else 0.0,
        penalty=penalty,
        norm_guard=float(tu.get_non_tensor_data(data, "norm_guard", 0.0)),
        step_weights=plan.noise_weights if weigh == "noise" else (),
        negative=tu.get_non_tensor_data(data, "negative", None),
        replay_steps=int(tu.get_non_tensor_data(data, "replay_steps", 1)),
        on_policy=on_policy,
    )
    _check(batch)
    return batch


def _check(batch: DecoderBatch) -> None:
    if batch.micro_batch_size < 1:
        raise ValueError(f"micro_batch_size_per_gpu must be at least 1, got {batch.micro_batch_size}")
    if batch.replay_steps < 1:
        raise ValueError(f"replay_steps must be at least 1, got {batch.replay_steps}")
    if batch.on_policy and batch.kind == "forward":
        raise ValueError("on_policy: the old policy of a forward objective is a weight copy, never the current weights")
    if batch.shares_prefix and batch.kind == "forward":
        raise ValueError("origin_B: forward objectives draw noise of their own for every sample")
    if batch.kind == "transition" and batch.places != len(batch.plan.window):
        raise ValueError(f"{batch.places} steps per sample, but the plan's window is {batch.plan.window}")
    if batch.places < 1:
        raise ValueError("there is no step to train: the plan's window is empty")
    forms = PENALTY_FORMS if batch.kind == "transition" else FORWARD_FORMS
    if batch.penalty.coef != 0.0 and batch.penalty.form not in forms:
        raise ValueError(f"uae.u4g.reference_kl.form must be one of {', '.join(forms)}, got {batch.penalty.form!r}")


def _required(data: TensorDict, name: str) -> Any:
    value = tu.get_non_tensor_data(data, name, None)
    if value is None:
        raise ValueError(f"a mini-batch lacks {name}")
    return value


def _rows(valid_B: Tensor, like: Tensor) -> Tensor:
    return valid_B.view(-1, *[1] * (like.ndim - 1))


def blank(tensor: Tensor, valid_B: Tensor) -> Tensor:
    """Zeros where a sample is not valid: it may hold anything, and 0 * nan is nan."""
    return torch.where(_rows(valid_B, tensor), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
