# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One batch of stage U4G: what both sides of a comparison are given.

Shape legend: N samples, B of a micro-batch, K steps of the window, L text positions, E language-model width,
C H W latent.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.sizes import VAE_FACTOR, Size
from verl_uae.families.family import Condition
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.scenes.grammar import caption
from verl_uae.scenes.render import sample_scene
from verl_uae.seeding import derive_seed, normal

#: eta of the CPS kernel, shift of the noise levels and clip of the objective: the package's defaults.
NOISE_LEVEL, SHIFT, CLIP = 0.8, 3.0, 1e-4
#: AdamW's, and the largest norm of a gradient. The rate is small: a benchmark should not drift.
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 1e-6, 0.01, 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done, and how it is cut.

    Raises:
        ValueError: groups or samples are not whole shares of every update, or samples not whole micro-batches.
    """

    size: Size
    plan: SamplingPlan
    prompts: int
    group: int
    """Samples per prompt."""
    micro: int
    updates: int
    """Optimiser updates per batch."""
    seed: int
    device: str
    shared_prefix: bool = False
    """A group starts from one noise, on both sides; the package computes what it has in common once."""
    processor_time: bool = False
    """Measure processor time of this process, see :class:`Clock`."""

    def __post_init__(self) -> None:
        if self.group % self.updates or self.samples % (self.micro * self.updates):
            cut = f"{self.updates} updates in micro-batches of {self.micro}"
            raise ValueError(f"{self.prompts} x {self.group} samples do not divide into {cut}")

    @property
    def samples(self) -> int:
        """N."""
        return self.prompts * self.group

    @property
    def latent(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        side = self.size.pixels // VAE_FACTOR
        return self.size.latent_channels, side, side

    def clock(self) -> Clock:
        """A clock that starts now."""
        return Clock(self.device, processor=self.processor_time)

    @property
    def numbers(self) -> list[int]:
        """Prompt times ``group``, plus member, of the samples in their order: each update has equally many members of
        every prompt, as :class:`verl_uae.stages.u4g.worker.Layout` has it."""
        width = self.group // self.updates
        return [
            prompt * self.group + update * width + member
            for update in range(self.updates)
            for prompt in range(self.prompts)
            for member in range(width)
        ]

    def captions(self, repetition: int) -> list[str]:
        """N captions, of every prompt as many as its group has; other ones in every repetition."""
        rng = random.Random(derive_seed(self.seed, "captions", repetition))
        found: dict[str, None] = {}
        while len(found) < self.prompts:
            found[caption(sample_scene(rng))] = None
        texts = list(found)
        return [texts[number // self.group] for number in self.numbers]

    def advantages(self, repetition: int) -> Tensor:
        """Shape (N,), standard normal: rewards are no part of the measurement."""
        return normal((self.samples,), self.seed, "advantage", repetition)

    def noise(self, repetition: int, start: int, step: int = -1) -> Tensor:
        """Of a micro-batch, shape (B, C, H, W), named by sample and step as the package names it; -1 is initial."""
        numbers = self.numbers[start : start + self.micro]
        # Of the group's first member where all start from one.
        members = [0 if self.shared_prefix and step < 0 else number % self.group for number in numbers]
        rows = [
            normal(self.latent, self.seed, "u4g noise", repetition, number // self.group, member, step)
            for number, member in zip(numbers, members, strict=True)
        ]
        return torch.stack(rows).to(self.device)

    @property
    def origin_N(self) -> Tensor:
        """Which samples are one latent until their first stochastic step, shape (N,), whole numbers."""
        return torch.tensor(self.numbers) // (self.group if self.shared_prefix else 1)


@dataclass(slots=True)
class Samples:
    """What sampling hands to the update. All fp32 but the states, host memory or device as each side keeps it."""

    states_NLE: Tensor
    final_NCHW: Tensor
    x_NKCHW: Tensor
    x_next_NKCHW: Tensor
    mean_NKCHW: Tensor
    log_prob_NK: Tensor
    origin_N: Tensor
    """See :attr:`Work.origin_N`."""

    @property
    def condition(self) -> Condition:
        """The states as what pictures are conditioned on."""
        return Condition.whole(self.states_NLE)

    def rows(self, rows: slice) -> Samples:
        """These samples."""
        return Samples(*(getattr(self, name)[rows] for name in Samples.__dataclass_fields__))

    def to(self, device: torch.device | str) -> Samples:
        """The samples on a device."""
        return Samples(*(getattr(self, name).to(device) for name in Samples.__dataclass_fields__))


def make_plan(steps: int, window: int) -> SamplingPlan:
    """A plan with the steps 1 to ``window`` stochastic, CPS, no guidance."""
    sigmas = tuple(sigma_schedule(steps, SHIFT).tolist())
    return SamplingPlan(sigmas, "cps", NOISE_LEVEL, tuple(range(1, window + 1)))


class Clock:
    """Seconds by part, device work included.

    Args:
        device: whose queued work belongs to a part.
        processor: count processor time of this process instead of time on the wall: for a CPU that others use too.
    """

    def __init__(self, device: str, *, processor: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = device == "cuda"
        self._clock = time.process_time if processor else time.perf_counter
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Give the time since the last lap to a part."""
        now = self._now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return self._clock()
