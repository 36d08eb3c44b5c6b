# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a term's values say: orderings that are right, and how far apart they lie.

Values are higher for better pictures. A pair is right if the lighter damage has the higher value; a tie counts half.

Shape legend: N pictures, D versions of a picture (itself first), P pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from verl_uae.bench.bootstrap import RESAMPLES, interval, resampled_means
from verl_uae.bench.discriminate.worlds import World

#: Values as close as this, relative to the larger one, are a tie: rounding of fp32 must not decide a pair.
TIE = 1e-6

#: Nuisances whose lightest level counts as mild in the comparison across kinds.
MILD = ("blur", "hue")

Pair = tuple[int, int]


def level_pairs(columns: Sequence[int]) -> list[Pair]:
    """(lighter, heavier) for every two levels of a kind."""
    return list(itertools.combinations(columns, 2))


def across_pairs(world: World, semantic: str, nuisances: Sequence[str] = MILD, level: int = 0) -> list[Pair]:
    """(level of a nuisance, level of a semantic kind that counts), by default the lightest level of the mild ones."""
    columns = world.columns()
    kind = next(kind for kind in world.kinds if kind.name == semantic)
    return [(columns[name][level], column) for name in nuisances for column in columns[semantic][kind.counted_from :]]


def pair_scores(values_ND: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """Share (N) of the pairs that are right for a picture; NaN where one of its values is missing."""
    better_NP = values_ND[:, [first for first, _ in pairs]]
    worse_NP = values_ND[:, [second for _, second in pairs]]
    gap_NP = better_NP - worse_NP
    tied_NP = np.abs(gap_NP) <= TIE * np.maximum(np.abs(better_NP), np.abs(worse_NP))
    right_NP = np.where(tied_NP, 0.5, (gap_NP > 0).astype(np.float64))
    return np.where(np.isnan(gap_NP), np.nan, right_NP).mean(axis=1)


def accuracy(values_ND: np.ndarray, pairs: Sequence[Pair], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Mean over pictures, 95% bootstrap interval over pictures, numbers of pairs and of pictures that count."""
    scores_N = pair_scores(values_ND, pairs)
    return _estimate(scores_N, seed, resamples) | {"pairs": len(pairs)}


def mean_accuracy(
    values_ND: np.ndarray, groups: Sequence[Sequence[Pair]], seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Mean over groups of pairs, each of equal weight, with its interval."""
    scores_NG = np.stack([pair_scores(values_ND, pairs) for pairs in groups], axis=1)
    return _estimate(scores_NG.mean(axis=1), seed, resamples) | {"pairs": sum(len(pairs) for pairs in groups)}


def useful_range(
    values_ND: np.ndarray, damaged: Sequence[int], other: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """How far the picture itself lies above another picture, in units of the spread within a level.

    d' = mean(itself - other) / s, with s the root of the mean over levels of the variance over pictures.

    Args:
        values_ND: values.
        damaged: columns of the levels.
        other: column of the other picture.
        seed, resamples: of the bootstrap over pictures.
    """
    usable_ND = values_ND[~np.isnan(values_ND).any(axis=1)]
    if len(usable_ND) < 2:
        return {"d_prime": None, "interval": None, "pictures": len(usable_ND)}
    centred_ND = usable_ND - usable_ND.mean(axis=0)
    gap_R = resampled_means(usable_ND[:, :1] - usable_ND[:, other : other + 1], seed, resamples)[:, 0]
    variance_R = np.zeros(resamples)
    for column in damaged:
        # The same rows are drawn in every call.
        moments_R2 = resampled_means(
            np.stack([centred_ND[:, column], centred_ND[:, column] ** 2], axis=1), seed, resamples
        )
        variance_R += (moments_R2[:, 1] - moments_R2[:, 0] ** 2) / len(damaged)
    spread = float(np.sqrt(usable_ND[:, list(damaged)].var(axis=0).mean()))
    gap = float((usable_ND[:, 0] - usable_ND[:, other]).mean())
    flat = spread == 0.0 or (variance_R <= 0.0).any()
    return {
        "d_prime": None if spread == 0.0 else gap / spread,
        "interval": None if flat else interval(gap_R / np.sqrt(variance_R)),
        "identical": float(usable_ND[:, 0].mean()),
        "other": float(usable_ND[:, other].mean()),
        "spread": spread,
        "pictures": len(usable_ND),
    }


def summary(world: World, values_ND: np.ndarray, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that is said about one term in one world."""
    columns = world.columns()
    within = {kind.name: level_pairs(columns[kind.name]) for kind in world.kinds}
    semantic = [kind.name for kind in world.kinds if kind.semantic]
    nuisance = [kind.name for kind in world.kinds if not kind.semantic]
    across = {name: across_pairs(world, name) for name in semantic}
    each_level = {
        name: [[across_pairs(world, kind, [name], level) for kind in semantic] for level in range(len(columns[name]))]
        for name in nuisance
    }
    damaged = [column for found in columns.values() for column in found]
    return {
        "ordering": {name: accuracy(values_ND, pairs, seed, resamples) for name, pairs in within.items()},
        "ordering_semantic": mean_accuracy(values_ND, [within[name] for name in semantic], seed, resamples),
        "ordering_nuisance": mean_accuracy(values_ND, [within[name] for name in nuisance], seed, resamples),
        "semantic_below_mild": {name: accuracy(values_ND, pairs, seed, resamples) for name, pairs in across.items()},
        "semantic_below_mild_all": mean_accuracy(values_ND, list(across.values()), seed, resamples),
        "semantic_below_nuisance": {
            name: [mean_accuracy(values_ND, groups, seed, resamples) for groups in levels]
            for name, levels in each_level.items()
        },
        "range": useful_range(values_ND, damaged, columns["replaced"][-1], seed, resamples),
        "means": {name: _column_means(values_ND[:, found]) for name, found in columns.items()},
    }


def _estimate(scores_N: np.ndarray, seed: int, resamples: int) -> dict[str, Any]:
    usable_N = scores_N[~np.isnan(scores_N)]
    if len(usable_N) == 0:
        return {"mean": None, "interval": None, "pictures": 0}
    samples_R = resampled_means(usable_N[:, None], seed, resamples)[:, 0]
    return {"mean": float(usable_N.mean()), "interval": interval(samples_R), "pictures": len(usable_N)}


def _column_means(values_NL: np.ndarray) -> list[float | None]:
    usable_NL = values_NL[~np.isnan(values_NL).any(axis=1)]
    return [float(value) for value in usable_NL.mean(axis=0)] if len(usable_NL) else [None] * values_NL.shape[1]
