# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What figures over seeds are worth: their seeds, means with intervals, leads seed by seed, and axes of equal cost.

Two kinds of interval, both of 95 %. A t interval is over seeds alone. A bootstrap draws seeds and, in each, pictures,
with replacement: it knows too how far a seed's own figure would move on other pictures.

Shape legend: S seeds, N pictures, R resamples.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from verl_uae.bench.results import LEVEL
from verl_uae.bench.results import interval as central
from verl_uae.errors import ConfigError
from verl_uae.seeding import generator

Row = Mapping[str, Any]

#: Seeds that settings are chosen on; those of a page whose settings no other seed has seen.
TUNING_SEEDS: tuple[int, ...] = (0, 1, 2)
REPORTED_SEEDS: tuple[int, ...] = (10, 11, 12, 13, 14)

#: What runs can be compared at equal amounts of -> what it is called.
AXES = {"step": "step", "pictures": "drawn pictures", "seconds": "seconds of steps", "flops": "FLOPs of steps"}
#: ``unified/stage`` of a step -> whose costs it has, where a run has steps of two kinds.
STAGES = {0.0: "g4u", 1.0: "u4g"}

_RESAMPLES = 2000


# ---------------------------------------------------------------- means over seeds


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; 0 for one value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def t_interval(values: Sequence[float], comparisons: int = 1) -> list[float] | None:
    """[low, high] of the mean by Student's t; None for one value, which says nothing of the others.

    Args:
        values: of the seeds.
        comparisons: so many intervals hold at once, by Bonferroni's correction.
    """
    if len(values) < 2:
        return None
    mean, spread = mean_and_spread(values)
    half = half_width(len(values), comparisons) * spread
    return [mean - half, mean + half]


def half_width(count: int, comparisons: int = 1) -> float:
    """Half of the t interval of the mean of so many values, at least 2, as a multiple of their standard deviation."""
    return t_quantile(1 - (1 - LEVEL) / comparisons, count - 1) / math.sqrt(count)


def t_quantile(level: float, freedom: int) -> float:
    """t with P(\\|T\\| < t) = ``level`` in (0, 1), T of Student's distribution with so many degrees of freedom.

    Raises:
        ValueError: no degree of freedom, or a level outside.
    """
    if freedom < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"needs a degree of freedom and a level in (0, 1), got {freedom} and {level}")
    # In the angle, whose tangent is t / sqrt(freedom), the quantile lies in a bounded interval.
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_share(middle, freedom) < level else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _central_share(angle: float, freedom: int) -> float:
    """P(\\|T\\| < sqrt(freedom) tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power - 1) / power
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def bootstrap(groups: Sequence[Sequence[float]], *name: int | str) -> list[float]:
    """[low, high] of the mean, by percentiles of means of drawn seeds and of pictures drawn in each.

    Args:
        groups: for every seed a number for each picture; equally many, at least one, none missing. One seed alone is
            not drawn: then the interval is over its pictures.
        name: of the draws.

    Raises:
        ValueError: there is nothing to draw from, or numbers of pictures differ.
    """
    if len({len(group) for group in groups}) != 1 or not groups[0]:
        raise ValueError(f"a bootstrap needs equally many pictures of each seed, got {[len(g) for g in groups]}")
    values_SN, source = np.asarray(groups, dtype=np.float64), generator(*name)
    (seeds, pictures), means_R = values_SN.shape, np.zeros(_RESAMPLES)
    chosen_RS = np.zeros((_RESAMPLES, 1), dtype=np.int64)
    if seeds > 1:
        chosen_RS = torch.randint(seeds, (_RESAMPLES, seeds), generator=source).numpy()
    for chosen_R in chosen_RS.T:
        drawn_RN = torch.randint(pictures, (_RESAMPLES, pictures), generator=source).numpy()
        means_R += values_SN[chosen_R[:, None], drawn_RN].mean(1) / seeds
    return central(means_R)


# ---------------------------------------------------------------- rows of a report


def select(rows: Iterable[Row], **labels: object) -> list[Row]:
    """The rows with these labels."""
    return [row for row in rows if all(row[name] == value for name, value in labels.items())]


def gains(rows: Iterable[Row], key: str) -> list[float]:
    """A figure after minus before, per row."""
    return [row["after"][key] - row["before"][key] for row in rows]


def leads(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours minus theirs, seed by seed: runs of a seed share their start, scenes and noise.

    Raises:
        ValueError: they are of other seeds.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"seeds {sorted(ours)} cannot be paired with {sorted(theirs)}")
    return [ours[seed] - theirs[seed] for seed in sorted(ours)]


def by_seed(rows: Iterable[Row], key: str, when: str = "after") -> dict[int, float]:
    """Seed -> a figure of its row."""
    return {row["seed"]: row[when][key] for row in rows}


def spent(row: Row, axis: str) -> list[float]:
    """What a run has used up to each point of its ``curve``, on an axis of `AXES`.

    Drawn pictures and FLOPs of a step are those of the row's ``cost``, by stage where a run has two kinds of steps.

    Raises:
        ConfigError: the row is of a file that does not say it.
    """
    curve = row["curve"]
    if axis == "step":
        return [point["step"] for point in curve]
    if axis == "seconds":
        return list(itertools.accumulate(point["seconds"] for point in curve))
    if "cost" not in row:
        raise ConfigError("--axis", f"{axis}: the result file does not say what a step costs; it has step and seconds")
    cost = row["cost"]
    only = next(iter(cost)) if len(cost) == 1 else None
    return list(itertools.accumulate(cost[only or STAGES[point["stage"]]][axis] for point in curve))
