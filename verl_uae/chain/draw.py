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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.chain.codec import decode_latent
from verl_uae.chain.conditions import ConditionCache, stack_states
from verl_uae.chain.reconstruct import encode_jpeg, encode_png
from verl_uae.data.images import to_tensor
from verl_uae.devices import FittingBatch
from verl_uae.errors import RewardError
from verl_uae.flow.ode import Velocity, euler
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import Trajectory, sample_trajectory
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.scorer import RewardScorer
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
    """Pictures scored together."""
    vae_batch_size: int
    """Pictures decoded by the VAE at a time."""
    share_noise: bool
    negative_prompt: str
    keep_reconstructions: bool = False
    """Exploration returns every reconstruction as PNG bytes, for groupwise rewards."""


@dataclass(slots=True)
class PolicyDraw:
    """What sampling gave, in the order asked for."""

    records: list[RewardRecord]
    truncated: list[bool]
    pictures: list[bytes | None]
    """JPEGs of the samples that want one."""
    reconstructions: list[bytes | None]
    """PNGs of all, where they are kept."""
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
        self._vae_batch = FittingBatch(settings.vae_batch_size, "pictures of the VAE", "uae.decoder.vae_batch_size")

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

        return self._run(field_of, plan.guidance, sources, samples, draw, keep=self.settings.keep_reconstructions)

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
        keep: bool = False,
    ) -> PolicyDraw:
        size = self.settings.micro_batch_size
        clock = _Clock()
        states, cut, failures = self.conditions.get([sources[sample.source].caption for sample in samples])
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
        failed = _without_caption(sources, samples, failures)
        records, pictures, kept = self._score(trajectory.final_BCHW, sources, samples, failed, clock, keep)
        return PolicyDraw(records, cut, pictures, kept, torch.stack(states), trajectory, clock.seconds)

    def _negative(self, guidance: float) -> Tensor | None:
        if guidance == 1.0:
            return None
        return stack_states(self.conditions.get([self.settings.negative_prompt]).states, self.device)

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
        return torch.stack(rows).to(self.device, non_blocking=True)

    def _score(
        self,
        final_NChw: Tensor,
        sources: Sequence[PolicySource],
        samples: Sequence[PolicySample],
        failed: Mapping[int, RewardRecord],
        clock: _Clock,
        keep: bool,
    ) -> tuple[list[RewardRecord], list[bytes | None], list[bytes | None]]:
        """Records, JPEGs where asked for, PNGs of all if ``keep``.

        ``failed`` are records of samples that need no score, by position.
        """
        records: list[RewardRecord] = []
        pictures: list[bytes | None] = []
        kept: list[bytes | None] = []
        size = self.settings.decode_batch_size
        for start in range(0, len(samples), size):
            some = samples[start : start + size]
            known = {index: failed[start + index] for index in range(len(some)) if start + index in failed}
            picture_B3HW, undrawn = self._decode(final_NChw[start : start + size])
            clock.lap("decode")
            records += self._records(picture_B3HW, sources, some, {**undrawn, **known})
            clock.lap("score")
            pictures += [
                encode_jpeg(picture_B3HW[index]) if sample.want_picture and index not in undrawn else None
                for index, sample in enumerate(some)
            ]
            kept += [encode_png(picture_3HW) if keep else None for picture_3HW in picture_B3HW]
        return records, pictures, kept

    def _decode(self, final_BChw: Tensor) -> tuple[Tensor, dict[int, RewardRecord]]:
        """Pictures, and the records of those that cannot be drawn, which are black."""
        try:
            latent_BChw = final_BChw.to(self.device, non_blocking=True)
            pictures = self._vae_batch.map(len(final_BChw), lambda rows: decode_latent(self.vae, latent_BChw[rows]))
            return torch.cat(pictures), {}
        except (RuntimeError, MemoryError) as error:
            # A kernel that fails, or a single picture that memory does not hold: a batch is tried again one by one.
            if len(final_BChw) == 1:
                reason = f"decoder: {type(error).__name__}: {error}"
                black = torch.zeros(1, 3, self.settings.height, self.settings.width, device=self.device)
                return black, {0: RewardRecord.failed(Status.ERROR, reason)}
        parts = [self._decode(final_BChw[index : index + 1]) for index in range(len(final_BChw))]
        undrawn = {index: record for index, (_, lost) in enumerate(parts) for record in lost.values()}
        return torch.cat([picture for picture, _ in parts]), undrawn

    def _records(
        self,
        picture_B3HW: Tensor,
        sources: Sequence[PolicySource],
        samples: Sequence[PolicySample],
        failed: Mapping[int, RewardRecord],
    ) -> list[RewardRecord]:
        used = [sources[sample.source] for sample in samples]
        size = (self.settings.height, self.settings.width)
        pixels = {number: _pixels(sources[number].image, size) for number in {sample.source for sample in samples}}
        lost = {
            index: RewardRecord.failed(Status.ERROR, reason)
            for index, sample in enumerate(samples)
            if (reason := pixels[sample.source][1])
        }
        batch = RewardBatch(
            source_B3HW=torch.stack([pixels[sample.source][0] for sample in samples]).to(
                picture_B3HW.device, non_blocking=True
            ),
            reconstruction_B3HW=picture_B3HW,
            captions=[source.caption for source in used],
            rows=[source.row for source in used],
            failed={**lost, **failed},
        )
        try:
            return self.scorer.score(batch)
        except RewardError as error:
            # The scorer keeps faults to their samples. This one concerns all; stopping is for the trainer, not for one
            # of several ranks.
            reason = f"reward: {type(error).__name__}: {error}"
            return [RewardRecord.failed(Status.ERROR, reason) for _ in samples]


def _without_caption(
    sources: Sequence[PolicySource], samples: Sequence[PolicySample], failures: Sequence[str]
) -> dict[int, RewardRecord]:
    """Records of the samples whose caption was not written or cannot be encoded, by position."""
    failed: dict[int, RewardRecord] = {}
    for index, (sample, reason) in enumerate(zip(samples, failures, strict=True)):
        source = sources[sample.source]
        if source.status != "ok":
            failed[index] = RewardRecord.failed(Status(source.status), source.failure or "no caption")
        elif reason:
            failed[index] = RewardRecord.failed(Status.ERROR, reason)
    return failed


def _pixels(image: Image.Image, size: tuple[int, int]) -> tuple[Tensor, str]:
    """A source picture, shape (3, H, W), and why there is none: then it is black."""
    try:
        return to_tensor([image], size)[0], ""
    except (OSError, SyntaxError, ValueError) as error:
        # What Pillow raises on a damaged file.
        return torch.zeros(3, *size), f"source picture: {type(error).__name__}: {error}"


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
