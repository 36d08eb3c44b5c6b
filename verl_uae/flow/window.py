# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which denoising steps are stochastic and trained.

A window belongs to a batch, not to a sample: members of one group that explore different steps are not comparable,
and their rewards spread for no reason of the policy's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from verl_uae.flow.config import WindowConfig
from verl_uae.flow.kernels import Coefficients, gain


def trainable_steps(
    coefficients: Sequence[Coefficients], sigmas: Sequence[float], settings: WindowConfig
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
    settings: WindowConfig, allowed: Sequence[int], num_steps: int, *, iteration: int, seed: int
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


def _position(settings: WindowConfig, count: int, iteration: int, seed: int) -> int:
    """Which of ``count`` starts; the hash in place of a generator leaves no state to save."""
    if settings.mode == "progressive":
        return min(iteration // settings.every * settings.stride, count - 1)
    digest = hashlib.sha256(f"window {seed} {iteration}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def _no_window(settings: WindowConfig, allowed: Sequence[int], num_steps: int, high: int) -> str:
    where = "at all" if settings.mode == "all" else f"of size {settings.size} from step {settings.low} to {high}"
    return (
        f"no window {where} fits (window.mode {settings.mode}): of {num_steps} steps, {list(allowed)} can be trained "
        f"under window.min_sigma_next {settings.min_sigma_next}, window.min_std {settings.min_std} and window.max_gain "
        f"{settings.max_gain}; change these, window.size, low or high, or the number of steps or the noise level"
    )
