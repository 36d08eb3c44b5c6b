# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Processor time of a term per pair of pictures.

Processor time of the process, not wall-clock time: a machine that others use too makes the clock run, not the work.
The terms take turns, each once per repetition and in an order that moves on by one, so that what drifts hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verl_uae.bench.discriminate.terms import Progress
from verl_uae.reward import RewardBatch, RewardScorer

WARM_UP = 2


def pairs_of(images_N3HW: Tensor, repetition: int, count: int) -> RewardBatch:
    """``count`` pairs; no source picture twice in a row, so that a cache of features does not help."""
    rows = [(repetition * count + index) % len(images_N3HW) for index in range(count)]
    source = images_N3HW[rows]
    noise = torch.linspace(-0.02, 0.02, source.shape[-1]).expand_as(source)
    return RewardBatch(source, (source + noise).clamp(0.0, 1.0), captions=[""] * count, rows=[{}] * count)


def milliseconds_per_pair(
    scorers: Mapping[str, RewardScorer],
    images_N3HW: Tensor,
    *,
    batch_size: int,
    repetitions: int,
    on_progress: Progress = lambda what, done, count: None,
) -> dict[str, dict[str, Any]]:
    """Median and quartiles over repetitions, by label, after warm-up calls; both pictures are encoded anew.

    Args:
        scorers: built without a cache of source features.
        images_N3HW: pictures of one size, in [0, 1].
        batch_size: pairs per call.
        repetitions: calls per term that count.
        on_progress: called after every repetition.
    """
    labels: Sequence[str] = list(scorers)
    found: dict[str, list[float]] = {label: [] for label in labels}
    for repetition in range(-WARM_UP, repetitions):
        batch = pairs_of(images_N3HW, repetition, batch_size)
        first = repetition % len(labels)
        for label in (*labels[first:], *labels[:first]):
            start = time.process_time()
            scorers[label].score(batch)
            elapsed = time.process_time() - start
            if repetition >= 0:
                found[label].append(1000.0 * elapsed / batch_size)
        on_progress(f"speed at {images_N3HW.shape[-1]} pixels", repetition + WARM_UP + 1, repetitions + WARM_UP)
    return {label: _quartiles(times) for label, times in found.items()}


def _quartiles(times: Sequence[float]) -> dict[str, Any]:
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    return {"median": float(middle), "quartiles": [float(low), float(high)], "repetitions": len(times)}
