# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which denoising steps are stochastic and trained.

A window belongs to a batch, not to a sample: members of one group that explore different steps are not comparable,
and their rewards spread for no reason of the policy's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from verl_uae.flow.kernels import Coefficients, gain

Mode = Literal["random", "fixed", "progressive", "all"]
MODES = ("random", "fixed", "progressive", "all")


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How the window of a batch is chosen. "Fast" is the windowed setting of Flow-GRPO's authors (arXiv 2505.05470)."""

    mode: Mode = "random"
    """``random``: the start is drawn for every iteration (Fast). ``fixed``: it starts at ``low``. ``progressive``: it
    moves from noise to data and stays at the last place (MixGRPO, arXiv 2507.21802). ``all``: every step that can be
    trained, whatever ``size``, ``low`` and ``high`` say (Flow-GRPO)."""
    size: int = 3
    """Consecutive steps, at least 1. Fast: 2 or 3; MixGRPO: 4 of 25."""
    low: int = 0
    """First step the window may start at, at least 0; step 0 starts from pure noise. Fast: 0."""
    high: int | None = None
    """Step the window must end before, above ``low``, at most the number of steps; None is half of them. Fast: the
    first half; MixGRPO: all steps."""
    stride: int = 1
    """``progressive``: steps of a move, at least 1. MixGRPO: 1."""
    every: int = 25
    """``progressive``: iterations between moves, at least 1. MixGRPO: 25."""
    min_sigma_next: float = 0.05
    """Exclude steps that end below this noise level, in [0, 1]. Our choice: noise injected by a step to nearly 0 stays
    in the picture, as in the last two steps of the ``double_shift`` table."""
    min_std: float = 0.05
    """Exclude steps whose transition std is below this, at least 0, in units of the latent. Our choice."""
    max_gain: float = 2.0
    """Exclude steps whose gain (:func:`~verl_uae.flow.kernels.gain`) is above this, positive, in std per unit of
    velocity; inf is no limit. Our choice: rounding in the model weighs as much as the policy there."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"window.mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name, least in (("size", 1), ("low", 0), ("stride", 1), ("every", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"window.{name} must be an integer of at least {least}, got {value!r}")
        if self.high is not None and not self.high > self.low:
            raise ValueError(f"window.high must be above window.low ({self.low}), got {self.high}")
        if not 0.0 <= self.min_sigma_next <= 1.0:
            raise ValueError(f"window.min_sigma_next must be in [0, 1], got {self.min_sigma_next}")
        if not 0.0 <= self.min_std < math.inf:
            raise ValueError(f"window.min_std must be at least 0, got {self.min_std}")
        if not self.max_gain > 0.0:
            raise ValueError(f"window.max_gain must be positive, got {self.max_gain}")


def trainable_steps(
    coefficients: Sequence[Coefficients], sigmas: Sequence[float], settings: WindowSettings
) -> tuple[int, ...]:
    """Steps that may be stochastic: noisy enough, and not so sharp that rounding decides.

    Args:
        coefficients: the stochastic transition of every step, S of them.
        sigmas: noise levels, S + 1 of them.
        settings: for ``min_sigma_next``, ``min_std`` and ``max_gain``.

    Returns:
        Indices in rising order; none where no step qualifies. Deterministic steps never do.

    Raises:
        ValueError: lengths do not fit.
    """
    if len(sigmas) != len(coefficients) + 1:
        raise ValueError(f"{len(coefficients)} transitions between {len(sigmas)} noise levels")
    return tuple(
        index
        for index, c in enumerate(coefficients)
        if c.std > 0.0
        and c.std >= settings.min_std
        and sigmas[index + 1] >= settings.min_sigma_next
        and gain(c) <= settings.max_gain
    )


def draw_window(
    settings: WindowSettings, allowed: Sequence[int], num_steps: int, *, iteration: int, seed: int
) -> tuple[int, ...]:
    """The window of one iteration, a function of the arguments alone: the same on every rank and after a resume.

    Args:
        settings: how to choose.
        allowed: steps that can be trained, from :func:`trainable_steps`.
        num_steps: S, all denoising steps.
        iteration: number of the batch, at least 0.
        seed: of the run; draws of different iterations are independent.

    Returns:
        Step indices in rising order; consecutive, unless the mode is ``all`` and a step in between is excluded.

    Raises:
        ValueError: no window fits.
    """
    if iteration < 0:
        raise ValueError(f"iteration must be at least 0, got {iteration}")
    high = num_steps // 2 if settings.high is None else settings.high
    starts = [
        start
        for start in range(settings.low, min(high, num_steps) - settings.size + 1)
        if set(range(start, start + settings.size)) <= set(allowed)
    ]
    if settings.mode == "fixed":
        starts = [start for start in starts if start == settings.low]
    if settings.mode == "all" and allowed:
        return tuple(sorted(allowed))
    if settings.mode == "all" or not starts:
        raise ValueError(_no_window(settings, allowed, num_steps, high))
    start = starts[_position(settings, len(starts), iteration, seed)]
    return tuple(range(start, start + settings.size))


def _position(settings: WindowSettings, count: int, iteration: int, seed: int) -> int:
    """Which of ``count`` starts; the hash in place of a generator leaves no state to save."""
    if settings.mode == "progressive":
        return min(iteration // settings.every * settings.stride, count - 1)
    digest = hashlib.sha256(f"window {seed} {iteration}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def _no_window(settings: WindowSettings, allowed: Sequence[int], num_steps: int, high: int) -> str:
    where = "at all" if settings.mode == "all" else f"of size {settings.size} from step {settings.low} to {high}"
    return (
        f"no window {where} fits (window.mode {settings.mode}): of {num_steps} steps, {list(allowed)} can be trained "
        f"under window.min_sigma_next {settings.min_sigma_next}, window.min_std {settings.min_std} and window.max_gain "
        f"{settings.max_gain}; change these, window.size, low or high, or the number of steps or the noise level"
    )
