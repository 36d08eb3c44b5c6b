# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Bars of the learning runs: what must hold, whether it does, and the figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """One claim about all seeds."""

    claim: str
    met: bool
    figure: str


def every(claim: str, gains: Sequence[float], at_least: float, noun: str = "smallest gain") -> Bar:
    """Whether every seed's gain reaches a number."""
    return Bar(claim, min(gains) >= at_least, f"{noun} {min(gains):+.3f}")


def beyond_seeds(claim: str, gains: Sequence[float]) -> Bar:
    """Whether the mean gain is more than twice its standard deviation over seeds."""
    mean, spread = mean_and_spread(gains)
    return Bar(claim, mean > 2 * spread, f"mean gain {mean:+.3f}, standard deviation over seeds {spread:.3f}")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; 0 for one value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def lines(bars: Iterable[Bar]) -> list[str]:
    """One line of text per bar."""
    return [f"[{'met' if bar.met else 'MISSED'}] {bar.claim}: {bar.figure}" for bar in bars]
