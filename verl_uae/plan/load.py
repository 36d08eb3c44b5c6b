# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a step consists of, in seconds of one device and in counts: what the schedules of a simulation share out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from verl_uae.seeding import normal

#: Standard deviation of the logarithm of a caption's length. Captions of one prompt differ by about a third.
ASSUMED_SPREAD = 0.35


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of captions: log-normal around their mean, cut where a caption is."""

    mean: float
    most: int
    spread: float = ASSUMED_SPREAD
    """Standard deviation of the logarithm; 0 makes all alike."""

    def draw(self, count: int, *name: int | str) -> list[int]:
        """Lengths by name: the same name gives the same ones."""
        middle = math.log(self.mean) - self.spread**2 / 2
        exact = (middle + self.spread * normal((count,), "plan", *name)).exp()
        return [min(self.most, max(1, round(length))) for length in exact.tolist()]


@dataclass(frozen=True, slots=True)
class Captioning:
    """Captions of a step, written by servers that take a caption in whenever one comes (continuous batching), or by
    those that fill a batch and end it."""

    captions: int
    servers: int
    lengths: Lengths
    prefill_s: float
    """Of one prompt."""
    token_s: float
    """Arithmetic of one token of one caption."""
    step_s: float = 0.0
    """Of a step of all captions at hand, however many: the weights are read once."""
    cache_s: float = 0.0
    """Of the same for each of them: what it remembers is read."""
    rows: int = 0
    """Captions that are always computed together, empty ones among them; 0 is continuous batching."""
    wait_s: float = 0.0
    """That an incomplete batch waits for another caption."""
    server_gpus: int = 1

    def seconds(self, active: int) -> float:
        """Of one more token for so many captions."""
        return max(self.step_s + active * self.cache_s, active * self.token_s)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Pictures of a step, drawn and scored by ranks that work alone."""

    ranks: int
    batch: int
    """Captions of a micro-batch of the streamed schedule at most."""
    picture_s: float
    """Of all pictures of one caption."""
    condition_s: float = 0.0
    """Of a batch of conditions, which costs the same however few captions are in it."""
    conditions: int = 32
    """Captions of such a batch."""
    move_s: float = 0.0
    """Before the first picture of a step: weights come to the device."""
    wait_s: float = 0.0
    """That the first caption of a micro-batch waits for company while a rank is idle."""

    def seconds(self, captions: int) -> float:
        """Of so many captions on one rank."""
        return math.ceil(captions / self.conditions) * self.condition_s + captions * self.picture_s


@dataclass(frozen=True, slots=True)
class Work:
    """What all ranks of a pool do in step with each other: arithmetic, beside which weights arrive."""

    name: str
    compute_s: float
    links_s: float = 0.0
    """Weights and gradients between ranks."""
    alone_s: float = 0.0
    """What nothing runs beside: copies to and from the host, waking a server."""
    units: int = 1
    """Parts that weights arrive in; a part is fetched while the one before computes."""


@dataclass(frozen=True, slots=True)
class Control:
    """What does not run on GPUs."""

    agents: int = 1
    """Processes that prepare prompts and take captions in."""
    agent_s: float = 0.0
    """Of one of them for a caption."""
    sample_s: float = 0.0
    """Of the one process that controls the run, for a sample."""
    fixed_s: float = 0.0
    """Of the same, for a step."""


@dataclass(frozen=True, slots=True)
class Load:
    """A step."""

    samples: int
    """Pictures that are drawn, or learnt from."""
    works: tuple[Work, ...]
    """What the ranks that train do, in this order, behind captions and drawing if there are any."""
    gpus: int
    """That train."""
    control: Control = field(default_factory=Control)
    captioning: Captioning | None = None
    drawing: Drawing | None = None
    """On the same GPUs if these are as many as train and the schedule says so, else on a pool of its own."""
