# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The weighted sum with terms normalised by what the run has seen, or ranked within their group.

A term that lives in a narrow band, like a cosine of pooled features, hardly counts beside one that does not. With
``normalize: running`` a term enters the sum as (value - mean) / std, mean and standard deviation over all valid values
of the run so far, this batch included. With ``normalize: rank`` it enters as the share of the other members of its
group that have a smaller value: only the order counts, so no single outlier rules a group. Both need the values of all
ranks, so they belong to the trainer, not to a rank's scorer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Smallest divisor: a term that never differs has nothing to say, and rounding must not become a reward.
MIN_STD = 1e-6

NORMALIZATIONS = ("none", "running", "rank")


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
    normalize: str = "none"
    """One of `NORMALIZATIONS`."""
    tie: float = 0.0
    """For ``rank``: values that differ by no more are equal; in units of the term."""


@dataclass(slots=True)
class Composition:
    """The sum, with the moments of the terms that are normalised."""

    parts: Sequence[Part]
    moments: dict[str, RunningMoments] = field(init=False)

    def __post_init__(self) -> None:
        self.moments = {part.label: RunningMoments() for part in self.parts if part.normalize == "running"}

    @property
    def active(self) -> bool:
        """Whether any term is normalised; without one the scorer's own sum stands."""
        return any(part.normalize != "none" for part in self.parts)

    def learn(self, samples: Iterable[Mapping[str, float]]) -> None:
        """Take in the terms of all valid samples of a step."""
        rows = list(samples)
        for label, moments in self.moments.items():
            moments.update([row[label] for row in rows])

    def values(self, samples: Sequence[Mapping[str, float]], groups: Sequence[str]) -> list[float]:
        """The sums of the valid samples of a step.

        Args:
            samples: terms by label, those of all parts.
            groups: group of each sample.
        """
        columns = [self._column(part, [sample[part.label] for sample in samples], groups) for part in self.parts]
        factors = [part.factor for part in self.parts]
        return [math.fsum(f * v for f, v in zip(factors, row, strict=True)) for row in zip(*columns, strict=True)]

    def _column(self, part: Part, values: Sequence[float], groups: Sequence[str]) -> Sequence[float]:
        if part.normalize == "rank":
            return group_ranks(values, groups, part.tie)
        if part.normalize == "none":
            return values
        moments = self.moments[part.label]
        return [(value - moments.mean) / max(moments.std, MIN_STD) for value in values]

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


def group_ranks(values: Sequence[float], groups: Sequence[str], tie: float = 0.0) -> list[float]:
    """Share of the other members of a value's group that are smaller; equal ones count half.

    Args:
        values: finite numbers.
        groups: group of each.
        tie: values that differ by no more are equal.

    Returns:
        Numbers in [0, 1] whose mean over a group is 1/2; 1/2 for a value that is alone in its group.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    ranks = [0.5] * len(values)
    for indices in members.values():
        for index in indices:
            apart = [values[index] - values[other] for other in indices if other != index]
            if apart:
                ranks[index] = math.fsum(1.0 if d > tie else 0.5 if d >= -tie else 0.0 for d in apart) / len(apart)
    return ranks
