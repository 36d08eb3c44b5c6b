# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Percentile bootstrap (Efron 1979) over pairs, from named random numbers.

Shape legend: N pairs, K columns, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from verl_uae.seeding import generator

RESAMPLES = 10_000
LEVEL = 0.95
PURPOSE = "bench bootstrap"

#: Indices drawn at a time, to bound memory.
_CHUNK = 2_000_000


def resampled_means(values_NK: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Column means (R, K) of rows drawn with replacement; a row stays whole, so columns keep their correlation.

    The rows drawn depend on ``seed``, N and R alone: equal for all tables of N rows.

    Raises:
        ValueError: there is no row.
    """
    count = len(values_NK)
    if count == 0:
        raise ValueError("no pair to draw from")
    source = generator(seed, PURPOSE, count)
    step = max(1, _CHUNK // count)
    means = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn_RN = torch.randint(count, (rows, count), generator=source).numpy()
        means.append(values_NK[drawn_RN].mean(axis=1))
    return np.concatenate(means)


def interval(samples_R: np.ndarray | Sequence[float], level: float = LEVEL) -> list[float]:
    """[low, high]: the central part of the samples that holds ``level`` of them."""
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(np.asarray(samples_R, dtype=np.float64), [tail, 1.0 - tail])
    return [float(low), float(high)]
