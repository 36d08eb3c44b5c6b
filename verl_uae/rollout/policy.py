# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Sampling of the decoder policy: condition -> stochastic trajectory -> picture -> reward, on one rank, without Ray.

With a sharded policy every velocity call is a collective: all ranks must make equally many. So whatever goes wrong
with a caption, a picture or a reward marks samples, and never skips a call.

Shape legend: N samples of this rank, B of a micro-batch, K steps of the window, L text positions, E language-model
width, C h w latent, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.data.images import to_tensor
from verl_uae.decoder.codec import decode_latent
from verl_uae.flow.ode import Velocity, euler
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import Trajectory, sample_trajectory
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.scorer import RewardScorer
from verl_uae.rollout.chain import encode_jpeg
from verl_uae.rollout.conditions import ConditionCache, stack_states
from verl_uae.seeding import normal

#: (states (B, L, E), negative states (1, L, E) or None, guidance) -> velocity.
FieldOf = Callable[[Tensor, Tensor | None, float], Velocity]


@dataclass(frozen=True, slots=True)
class PolicySource:
    """One picture and its caption."""

    image: Image.Image
    """RGB."""
    digest: str
    caption: str
    failure: str = ""
    """Why there is no caption; its samples are drawn from the empty one and have no reward."""
    status: str = "ok"
    row: dict[str, Any] = field(default_factory=dict)
    """What custom rewards see of the dataset row."""


@dataclass(frozen=True, slots=True)
class PolicySample:
    """One reconstruction to draw."""

    source: int
    """Number of its :class:`PolicySource`."""
    member: int
    """Number within the group of that source."""
    want_picture: bool = False


@dataclass(frozen=True, slots=True)
class PolicyRolloutSettings:
    """What does not change over a run."""

    seed: int
    height: int
    width: int
    latent_shape: tuple[int, int, int]
    micro_batch_size: int
    """Samples per velocity call, in sampling and in training."""
    decode_batch_size: int
    """Pictures decoded and scored together."""
    share_noise: bool
    negative_prompt: str


@dataclass(slots=True)
class PolicyDraw:
    """What sampling gave, in the order asked for."""

    records: list[RewardRecord]
    truncated: list[bool]
    pictures: list[bytes | None]
    states_NLE: Tensor
    """Host memory, dtype of the conditioner."""
    trajectory: Trajectory
    """N samples, in host memory, fp32."""
    seconds: dict[str, float]


class PolicyRollout:
    """Draws and scores samples of the policy.

    Args:
        conditions: of captions.
        vae: diffusers AutoencoderKL.
        scorer: of pictures.
        settings: see there.
        device: where velocities are computed.
    """

    def __init__(
        self,
        conditions: ConditionCache,
        vae: Any,
        scorer: RewardScorer,
        settings: PolicyRolloutSettings,
        device: str | torch.device,
    ) -> None:
        self.conditions = conditions
        self.vae = vae
        self.scorer = scorer
        self.settings = settings
        self.device = torch.device(device)

    def explore(
        self,
        field_of: FieldOf,
        plan: SamplingPlan,
        sources: Sequence[PolicySource],
        samples: Sequence[PolicySample],
        step: int,
    ) -> PolicyDraw:
        """Draw with the training sampler, keeping what the objective needs.

        Noise is named by step, picture and member, so it does not depend on ranks or micro-batches.

        Args:
            field_of: the policy.
            plan: how to sample.
            sources: pictures with captions.
            samples: what to draw, a multiple of the micro-batch, in the order of training.
            step: training step, part of every noise's name.
        """

        def draw(field: Velocity, some: Sequence[PolicySample]) -> Trajectory:
            def step_noise(index: int) -> Tensor:
                return self._noise(sources, some, "u4g step noise", step, index)

            return sample_trajectory(field, self._initial(sources, some, step), plan, step_noise)

        return self._run(field_of, plan.guidance, sources, samples, draw)

    def evaluate(
        self,
        field_of: FieldOf,
        sigmas: Tensor,
        guidance: float,
        sources: Sequence[PolicySource],
        samples: Sequence[PolicySample],
    ) -> PolicyDraw:
        """Draw with the Euler ODE sampler of validation; the same noise at every step of the run."""

        def draw(field: Velocity, some: Sequence[PolicySample]) -> Trajectory:
            final = euler(field, self._initial(sources, some, 0), sigmas)
            none = final.new_empty((len(some), 0, *final.shape[1:]))
            return Trajectory(final, none, none, none, final.new_empty((len(some), 0)))

        return self._run(field_of, guidance, sources, samples, draw)

    def _run(
        self,
        field_of: FieldOf,
        guidance: float,
        sources: Sequence[PolicySource],
        samples: Sequence[PolicySample],
        draw: Callable[[Velocity, Sequence[PolicySample]], Trajectory],
    ) -> PolicyDraw:
        size = self.settings.micro_batch_size
        clock = _Clock()
        states, cut = self.conditions.get([sources[sample.source].caption for sample in samples])
        negative_1LE = self._negative(guidance)
        clock.lap("condition")
        parts: list[Trajectory] = []
        for start in range(0, len(samples), size):
            states_BLE = stack_states(states[start : start + size], self.device)
            with torch.no_grad():
                part = draw(field_of(states_BLE, negative_1LE, guidance), samples[start : start + size])
            parts.append(_to_host(part))
        trajectory = _join(parts)
        clock.lap("sample")
        records, pictures = self._score(trajectory.final_BCHW, sources, samples, clock)
        return PolicyDraw(records, cut, pictures, torch.stack(states), trajectory, clock.seconds)

    def _negative(self, guidance: float) -> Tensor | None:
        if guidance == 1.0:
            return None
        return stack_states(self.conditions.get([self.settings.negative_prompt])[0], self.device)

    def _initial(self, sources: Sequence[PolicySource], samples: Sequence[PolicySample], step: int) -> Tensor:
        return self._noise(sources, samples, "u4g noise", step, None)

    def _noise(
        self,
        sources: Sequence[PolicySource],
        samples: Sequence[PolicySample],
        purpose: str,
        step: int,
        index: int | None,
    ) -> Tensor:
        """Standard normal noise of the samples; initial noise is the group's where ``share_noise`` says so."""
        rows = []
        for sample in samples:
            member = () if index is None and self.settings.share_noise else (sample.member,)
            name = (self.settings.seed, purpose, step, sources[sample.source].digest, *member)
            rows.append(normal(self.settings.latent_shape, *name, *(() if index is None else (index,))))
        return torch.stack(rows).to(self.device)

    def _score(
        self, final_NChw: Tensor, sources: Sequence[PolicySource], samples: Sequence[PolicySample], clock: _Clock
    ) -> tuple[list[RewardRecord], list[bytes | None]]:
        records: list[RewardRecord] = []
        pictures: list[bytes | None] = []
        for start in range(0, len(samples), self.settings.decode_batch_size):
            some = slice(start, start + self.settings.decode_batch_size)
            found, drawn = self._score_batch(final_NChw[some], sources, samples[some], clock)
            records += found
            pictures += drawn
        return records, pictures

    def _score_batch(
        self, final_BChw: Tensor, sources: Sequence[PolicySource], samples: Sequence[PolicySample], clock: _Clock
    ) -> tuple[list[RewardRecord], list[bytes | None]]:
        try:
            picture_B3HW = decode_latent(self.vae, final_BChw.to(self.device))
            clock.lap("decode")
            records = self._records(picture_B3HW, sources, samples)
            clock.lap("score")
        except Exception as error:
            # Fault boundary of one batch of pictures: tried again one by one, it costs only the samples at fault.
            if len(samples) == 1:
                reason = f"decoder: {type(error).__name__}: {error}"
                return [RewardRecord.failed(Status.ERROR, reason)], [None]
            singles = [
                self._score_batch(final_BChw[i : i + 1], sources, samples[i : i + 1], clock)
                for i in range(len(samples))
            ]
            return [record for found, _ in singles for record in found], [jpeg for _, some in singles for jpeg in some]
        return records, [
            encode_jpeg(picture) if sample.want_picture else None
            for sample, picture in zip(samples, picture_B3HW, strict=True)
        ]

    def _records(
        self, picture_B3HW: Tensor, sources: Sequence[PolicySource], samples: Sequence[PolicySample]
    ) -> list[RewardRecord]:
        used = [sources[sample.source] for sample in samples]
        size = (self.settings.height, self.settings.width)
        source_B3HW = to_tensor([source.image for source in used], size).to(picture_B3HW.device)
        batch = RewardBatch(
            source_B3HW=source_B3HW,
            reconstruction_B3HW=picture_B3HW,
            captions=[source.caption for source in used],
            rows=[source.row for source in used],
        )
        return [
            record if source.status == "ok" else RewardRecord.failed(Status(source.status), source.failure)
            for record, source in zip(self.scorer.score(batch), used, strict=True)
        ]


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("condition", "sample", "decode", "score"), 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def _to_host(part: Trajectory) -> Trajectory:
    return Trajectory(*(getattr(part, name).to("cpu") for name in Trajectory.__dataclass_fields__))


def _join(parts: Sequence[Trajectory]) -> Trajectory:
    return Trajectory(*(torch.cat([getattr(p, name) for p in parts]) for name in Trajectory.__dataclass_fields__))
