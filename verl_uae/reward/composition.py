# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The weighted sum with terms normalised by what the run has seen.

A term that lives in a narrow band, like a cosine of pooled features, hardly counts beside one that does not. With
``normalize: running`` a term enters the sum as (value - mean) / std, mean and standard deviation over all valid values
of the run so far, this batch included. This needs the values of all ranks, so it belongs to the trainer, not to a
rank's scorer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Smallest divisor: a term that never differs has nothing to say, and rounding must not become a reward.
MIN_STD = 1e-6

NORMALIZATIONS = ("none", "running")


@dataclass(slots=True)
class RunningMoments:
    """Mean and population standard deviation of a stream, in fp64 (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def update(self, values: Sequence[float]) -> None:
        """Take in finite values; the order within one call does not matter."""
        if not values:
            return
        count = len(values)
        mean = math.fsum(values) / count
        squares = math.fsum((value - mean) ** 2 for value in values)
        total, distance = self.count + count, mean - self.mean
        self.squares += squares + distance**2 * self.count * count / total
        self.mean += distance * count / total
        self.count = total

    @property
    def std(self) -> float:
        """0 before the first value."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One summed term."""

    label: str
    factor: float
    """Weight, negated where lower is better."""
    running: bool
    """Whether it is normalised."""


@dataclass(slots=True)
class Composition:
    """The sum, with the moments of the terms that are normalised."""

    parts: Sequence[Part]
    moments: dict[str, RunningMoments] = field(init=False)

    def __post_init__(self) -> None:
        self.moments = {part.label: RunningMoments() for part in self.parts if part.running}

    @property
    def active(self) -> bool:
        """Whether any term is normalised; without one the scorer's own sum stands."""
        return bool(self.moments)

    def learn(self, samples: Iterable[Mapping[str, float]]) -> None:
        """Take in the terms of all valid samples of a step."""
        rows = list(samples)
        for label, moments in self.moments.items():
            moments.update([row[label] for row in rows])

    def value(self, terms: Mapping[str, float]) -> float:
        """The sum for one sample.

        Args:
            terms: values by label, those of all parts.
        """
        return math.fsum(part.factor * self._normalized(part.label, terms[part.label]) for part in self.parts)

    def _normalized(self, label: str, value: float) -> float:
        moments = self.moments.get(label)
        return value if moments is None else (value - moments.mean) / max(moments.std, MIN_STD)

    def state_dict(self) -> dict[str, Any]:
        """Moments by label, as plain data."""
        return {
            label: {"count": moments.count, "mean": moments.mean, "squares": moments.squares}
            for label, moments in self.moments.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Inverse of :meth:`state_dict`; a term that was not normalised before starts afresh."""
        for label in self.moments:
            self.moments[label] = RunningMoments(**state[label]) if label in state else RunningMoments()
