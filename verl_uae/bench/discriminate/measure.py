# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The reward terms that are measured, each as a scorer of its own: their values and the processor time they take.

Processor time of the process, not wall-clock time: a machine that others use too makes the clock run, not the work.
The terms take turns, each once per repetition and in an order that moves on by one, so that what drifts hits all alike.

Shape legend: N pictures, D versions of a picture (itself first).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verl_uae.bench.discriminate.worlds import World
from verl_uae.errors import ConfigError
from verl_uae.reward import RewardBatch, RewardScorer, TermSpec, get_reward, reward_names
from verl_uae.reward.remote.specs import Terms, read_terms
from verl_uae.reward.term import PICTURES

#: Seconds for one picture's versions.
TIMEOUT_S = 600.0
CACHE_BYTES = 64 * 2**20
#: A scorer fills up a call to whole chunks; both worlds' numbers of versions, 33 and 44, are multiples of this.
CHUNK = 11

#: Measured by default: all whose weights, if any, come with a package. Labels, names, parameters.
DEFAULTS: tuple[Mapping[str, Any], ...] = (
    {"label": "pixel, k=5", "name": "pixel", "params": {"k": 5}},
    {"name": "pixel"},
    {"label": "pixel, k=20", "name": "pixel", "params": {"k": 20}},
    {"label": "pixel, k=40", "name": "pixel", "params": {"k": 40}},
    {"name": "psnr"},
    {"name": "ssim"},
    {"label": "efficientnet_lite0, maps", "name": "efficientnet_lite0"},
    {"label": "efficientnet_lite0, pooled", "name": "efficientnet_lite0", "params": {"mode": "pooled"}},
)

WARM_UP = 2
"""Calls of a term that are not timed."""

Progress = Callable[[str, int, int], None]


def term_specs(given: Sequence[str], *, defaults: bool = True) -> list[TermSpec]:
    """The default terms and those given, each as in ``uae.reward.terms``: a name or a YAML mapping.

    Raises:
        ConfigError: no such entry, or a label used twice.
    """
    terms = read_terms(given, None) if given else Terms((), ())
    specs = [
        TermSpec(name=entry["name"], label=entry.get("label", entry["name"]), params=entry.get("params") or {})
        for entry in (DEFAULTS if defaults else ())
    ]
    # A sum is not taken here: a weight says nothing about one term, and a floor would cut its values.
    specs += [
        TermSpec(name=spec.name, label=spec.label, params=spec.params) for spec in (*terms.summed, *terms.held_out)
    ]
    labels = [spec.label for spec in specs]
    if len(set(labels)) != len(labels) or not labels:
        raise ConfigError("--term", f"needs terms with different labels, got {labels}")
    return specs


def build_scorers(
    specs: Sequence[TermSpec], *, cache_bytes: int = CACHE_BYTES, chunk_size: int = CHUNK
) -> dict[str, RewardScorer]:
    """One scorer per term, by label; a distance is negated, so that higher is better everywhere.

    Args:
        specs: the terms.
        cache_bytes: host memory for features of source pictures, per term.
        chunk_size: samples per call of a term's network.

    Raises:
        ConfigError: a term cannot be built.
    """
    return {
        spec.label: RewardScorer(
            [spec], timeout_s=TIMEOUT_S, chunk_size=chunk_size, source_cache_bytes=cache_bytes, key="--term"
        )
        for spec in specs
    }


def not_measured(specs: Sequence[TermSpec]) -> list[str]:
    """Registered terms that compare two pictures and are not among ``specs``."""
    # "custom" stands for a file of the user.
    measured = {"custom", *(spec.name for spec in specs)}
    return [name for name in reward_names() if name not in measured and get_reward(name).needs == frozenset(PICTURES)]


def batch_of(versions_D3HW: Tensor) -> RewardBatch:
    """Every version as a reconstruction of the first."""
    count = len(versions_D3HW)
    source = versions_D3HW[:1].expand(count, -1, -1, -1).contiguous()
    return RewardBatch(source, versions_D3HW, captions=[""] * count, rows=[{}] * count)


def score_world(
    world: World, scorers: Mapping[str, RewardScorer], on_progress: Progress = lambda what, done, count: None
) -> dict[str, np.ndarray]:
    """Values (N, D) by label, higher is better; NaN where a term gave none."""
    rows: dict[str, list[list[float]]] = {label: [] for label in scorers}
    for place in range(len(world.pictures)):
        batch = batch_of(world.versions(place))
        for label, scorer in scorers.items():
            values = [record.value for record in scorer.score(batch)]
            rows[label].append([math.nan if value is None else value for value in values])
        on_progress(world.name, place + 1, len(world.pictures))
    return {label: np.asarray(values, dtype=np.float64) for label, values in rows.items()}


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
