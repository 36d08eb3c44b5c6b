# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which reward term sees which damage, and at what cost: values, processor time, and what they say, as file and tables.

Every term is measured as a scorer of its own. Values are higher for better pictures. A pair is right if the lighter
damage has the higher value; a tie counts half.

Time is processor time of the process, not wall-clock time: a machine that others use too makes the clock run, not the
work. The terms take turns, each once per repetition and in an order that moves on by one, so that what drifts hits all
alike.

Shape legend: N pictures, D versions of a picture (itself first), P pairs, R resamples.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from verl_uae.bench.damage import World, draw_scenes
from verl_uae.bench.results import (
    LEVEL,
    NOTHING,
    RESAMPLES,
    facts_of_page,
    interval,
    markdown_table,
    number,
    read_result,
    resampled_means,
    versions,
)
from verl_uae.errors import ConfigError
from verl_uae.pages import render_page
from verl_uae.reward import RewardBatch, RewardScorer, TermSpec, get_reward, reward_names
from verl_uae.reward.remote.service import read_terms
from verl_uae.reward.term import PICTURES
from verl_uae.scenes.render import render_float

BENCHMARK, FORMAT = "reward discrimination", 1

#: Seconds for one picture's versions.
TIMEOUT_S = 600.0
CACHE_BYTES = 64 * 2**20
#: A scorer fills up a call to whole chunks; both worlds' numbers of versions, 33 and 44, are multiples of this.
CHUNK = 11

#: Measured by default: all whose weights, if any, come with a package. Names, labels, parameters.
DEFAULTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("pixel", "pixel, k=5", {"k": 5}),
    ("pixel", "pixel", {}),
    ("pixel", "pixel, k=20", {"k": 20}),
    ("pixel", "pixel, k=40", {"k": 40}),
    ("psnr", "psnr", {}),
    ("ssim", "ssim", {}),
    ("efficientnet_lite0", "efficientnet_lite0, maps", {}),
    ("efficientnet_lite0", "efficientnet_lite0, pooled", {"mode": "pooled"}),
)

WARM_UP = 2
"""Calls of a term that are not timed."""

#: Values as close as this, relative to the larger one, are a tie: rounding of fp32 must not decide a pair.
TIE = 1e-6

#: Nuisances whose lightest level counts as mild in the comparison across kinds.
MILD = ("blur", "hue")

Progress = Callable[[str, int, int], None]

LevelPair = tuple[int, int]
"""Places along D: lighter damage, heavier damage."""


def term_specs(given: Sequence[str], *, defaults: bool = True) -> list[TermSpec]:
    """The default terms and those given, each as in ``uae.reward.terms``: a name or a YAML mapping.

    Raises:
        ConfigError: no such entry, or a label used twice.
    """
    terms = read_terms(given, None) if given else None
    entries = [*DEFAULTS] if defaults else []
    # A sum is not taken here: a weight says nothing about one term, and a floor would cut its values.
    entries += [(spec.name, spec.label, spec.params) for spec in ((*terms.summed, *terms.held_out) if terms else ())]
    labels = [label for _, label, _ in entries]
    if len(set(labels)) != len(labels) or not labels:
        raise ConfigError("--term", f"needs terms with different labels, got {labels}")
    return [TermSpec(name=name, label=label, params=params) for name, label, params in entries]


def build_scorers(
    specs: Sequence[TermSpec], *, cache_bytes: int = CACHE_BYTES, chunk_size: int = CHUNK
) -> dict[str, RewardScorer]:
    """One scorer per term, by label; a distance is negated, so that higher is better everywhere.

    Args:
        cache_bytes: host memory for features of source pictures, per term.
        chunk_size: samples per call of a term's network.

    Raises:
        ConfigError: a term cannot be built.
    """
    options: dict[str, Any] = {"chunk_size": chunk_size, "source_cache_bytes": cache_bytes, "key": "--term"}
    return {spec.label: RewardScorer([spec], timeout_s=TIMEOUT_S, **options) for spec in specs}


def not_measured(specs: Sequence[TermSpec]) -> list[str]:
    """Registered terms that compare two pictures and are not among ``specs``."""
    # "custom" stands for a file of the user.
    measured = {"custom", *(spec.name for spec in specs)}
    return [name for name in reward_names() if name not in measured and get_reward(name).needs == frozenset(PICTURES)]


def _batch(source_B3HW: Tensor, reconstruction_B3HW: Tensor) -> RewardBatch:
    count = len(source_B3HW)
    return RewardBatch(source_B3HW, reconstruction_B3HW, captions=[""] * count, rows=[{}] * count)


def batch_of(versions_D3HW: Tensor) -> RewardBatch:
    """Every version as a reconstruction of the first."""
    return _batch(versions_D3HW[:1].expand_as(versions_D3HW).contiguous(), versions_D3HW)


def pairs_of(images_N3HW: Tensor, repetition: int, count: int) -> RewardBatch:
    """``count`` pairs; no source picture twice in a row, so that a cache of features does not help."""
    source = images_N3HW[[(repetition * count + index) % len(images_N3HW) for index in range(count)]]
    noise = torch.linspace(-0.02, 0.02, source.shape[-1]).expand_as(source)
    return _batch(source, (source + noise).clamp(0.0, 1.0))


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
    """
    labels = list(scorers)
    times: dict[str, list[float]] = {label: [] for label in labels}
    for repetition in range(-WARM_UP, repetitions):
        batch = pairs_of(images_N3HW, repetition, batch_size)
        first = repetition % len(labels)
        for label in (*labels[first:], *labels[:first]):
            start = time.process_time()
            scorers[label].score(batch)
            times[label].append(1000.0 * (time.process_time() - start) / batch_size)
        on_progress(f"speed at {images_N3HW.shape[-1]} pixels", repetition + WARM_UP + 1, repetitions + WARM_UP)
    quartiles = {label: np.quantile(found[WARM_UP:], [0.25, 0.5, 0.75]).tolist() for label, found in times.items()}
    return {
        label: {"median": middle, "quartiles": [low, high], "repetitions": repetitions}
        for label, (low, middle, high) in quartiles.items()
    }


def speed(
    specs: Sequence[TermSpec], sizes: Iterable[tuple[int, int]], repetitions: int, seed: int, on_progress: Progress
) -> dict[str, Any]:
    """Processor time by side. The pictures are scenes, enlarged: what a picture shows costs no time.

    Args:
        sizes: sides in pixels, and pairs per call.
    """
    images = render_float(draw_scenes(8, seed))
    found = {}
    for side, pairs in sizes:
        scorers = build_scorers(specs, cache_bytes=0, chunk_size=pairs)
        enlarged = F.interpolate(images, size=(side, side), mode="bilinear")
        options: dict[str, Any] = {"batch_size": pairs, "repetitions": repetitions, "on_progress": on_progress}
        times = milliseconds_per_pair(scorers, enlarged, **options)
        found[str(side)] = {"batch_size": pairs, "clock": "processor time", "terms": times}
    return found


def level_pairs(columns: Sequence[int]) -> list[LevelPair]:
    """(lighter, heavier) for every two levels of a kind."""
    return list(itertools.combinations(columns, 2))


def across_pairs(world: World, semantic: str, nuisances: Sequence[str] = MILD, level: int = 0) -> list[LevelPair]:
    """(level of a nuisance, level of a semantic kind that counts), by default the lightest level of the mild ones."""
    columns = world.columns()
    counted = next(kind.counted_from for kind in world.kinds if kind.name == semantic)
    return [(columns[name][level], column) for name in nuisances for column in columns[semantic][counted:]]


def pair_scores(values_ND: np.ndarray, pairs: Sequence[LevelPair]) -> np.ndarray:
    """Share (N) of the pairs that are right for a picture; NaN where one of its values is missing."""
    better_NP, worse_NP = (values_ND[:, list(places)] for places in zip(*pairs, strict=True))
    gap_NP = better_NP - worse_NP
    tied_NP = np.abs(gap_NP) <= TIE * np.maximum(np.abs(better_NP), np.abs(worse_NP))
    right_NP = np.where(tied_NP, 0.5, (gap_NP > 0).astype(np.float64))
    return np.where(np.isnan(gap_NP), np.nan, right_NP).mean(axis=1)


def accuracy(
    values_ND: np.ndarray, *groups: Sequence[LevelPair], seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Mean over groups of pairs, each of equal weight, and over pictures, with 95% bootstrap interval over pictures.

    Returns:
        ``mean`` and ``interval`` (None without pictures), and the numbers of ``pictures`` that count and of ``pairs``.
    """
    scores_N = np.stack([pair_scores(values_ND, pairs) for pairs in groups], axis=1).mean(axis=1)
    usable_N = scores_N[~np.isnan(scores_N)]
    found: dict[str, Any] = {"mean": None, "interval": None, "pictures": len(usable_N)}
    if len(usable_N):
        samples_R = resampled_means(usable_N[:, None], seed, resamples)[:, 0]
        found |= {"mean": float(usable_N.mean()), "interval": interval(samples_R)}
    return found | {"pairs": sum(map(len, groups))}


def useful_range(
    values_ND: np.ndarray, damaged: Sequence[int], other: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """How far the picture itself lies above another picture, in units of the spread within a level.

    d' = mean(itself - other) / s, with s the root of the mean over levels of the variance over pictures.

    Args:
        damaged: columns of the levels.
        other: column of the other picture.
    """
    usable_ND = _complete(values_ND)
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

    def share(*groups: Sequence[LevelPair]) -> dict[str, Any]:
        return accuracy(values_ND, *groups, seed=seed, resamples=resamples)

    columns = world.columns()
    within = {name: level_pairs(found) for name, found in columns.items()}
    semantic, nuisance = ([kind.name for kind in world.kinds if kind.semantic is wanted] for wanted in (True, False))
    across = {name: across_pairs(world, name) for name in semantic}
    damaged = [column for found in columns.values() for column in found]
    means = {name: _complete(values_ND[:, found]) for name, found in columns.items()}
    return {
        "ordering": {name: share(pairs) for name, pairs in within.items()},
        "ordering_semantic": share(*(within[name] for name in semantic)),
        "ordering_nuisance": share(*(within[name] for name in nuisance)),
        "semantic_below_mild": {name: share(pairs) for name, pairs in across.items()},
        "semantic_below_mild_all": share(*across.values()),
        "semantic_below_nuisance": {
            name: [
                share(*(across_pairs(world, kind, [name], level) for kind in semantic))
                for level in range(len(columns[name]))
            ]
            for name in nuisance
        },
        "range": useful_range(values_ND, damaged, columns["replaced"][-1], seed, resamples),
        "means": {
            name: found.mean(axis=0).tolist() if len(found) else [None] * found.shape[1]
            for name, found in means.items()
        },
    }


def _complete(values_ND: np.ndarray) -> np.ndarray:
    """The rows of pictures with all values."""
    return values_ND[~np.isnan(values_ND).any(axis=1)]


def discrimination_result(
    worlds: Mapping[str, Mapping[str, Any]],
    specs: Sequence[TermSpec],
    missing: Sequence[str],
    speed: Mapping[str, Any],
    *,
    seed: int,
    command: str,
) -> dict[str, Any]:
    """The contents of the result file, numbers with six digits.

    Args:
        worlds: by name, what :func:`world_result` says of each.
        missing: names of terms that were not measured.
        speed: see :func:`speed`.
    """
    content = {
        "benchmark": BENCHMARK,
        "format": FORMAT,
        "runs": [{"command": command, "commit": _commit(), "versions": versions(), "machine": _machine()}],
        "seed": seed,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "unit": "picture"},
        "tie": TIE,
        "mild": MILD,
        "terms": [{"label": spec.label, "name": spec.name, "params": dict(spec.params)} for spec in specs],
        "not_measured": missing,
        "worlds": worlds,
        "speed": speed,
    }
    # As it will be read again, so that results can be compared and merged.
    rounded: dict[str, Any] = json.loads(json.dumps(content), parse_float=lambda text: float(f"{float(text):.6g}"))
    return rounded


def world_result(world: World, values: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """What is said about the terms in one world, from their values (N, D) by label."""
    return {
        "side": world.side,
        "pictures": dict(zip(world.pictures, world.digests, strict=True)),
        "kinds": [
            {"name": kind.name, "levels": list(kind.levels), "unit": kind.unit, "semantic": kind.semantic}
            | ({"semantic_from_level": kind.counted_from + 1} if kind.semantic else {})
            for kind in world.kinds
        ],
        "failed": {label: int(np.isnan(found).sum()) for label, found in values.items()},
        "terms": {label: summary(world, found, seed) for label, found in values.items()},
    }


def merged(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two results over the same pictures as one; of a term or a timing in both, the later one counts.

    Raises:
        ConfigError: seed, pictures or damage differ.
    """
    same = all(earlier[name] == later[name] for name in ("seed", "bootstrap", "tie", "mild"))
    worlds = dict(earlier["worlds"])
    for name, world in later["worlds"].items():
        before = worlds.get(name, world)
        same = same and all(before[key] == world[key] for key in ("side", "pictures", "kinds"))
        worlds[name] = {**world, **{key: {**before[key], **world[key]} for key in ("failed", "terms")}}
    if not same:
        raise ConfigError("--merge", "seed, pictures or damage of the two results differ")
    return {
        **later,
        "runs": [*earlier["runs"], *later["runs"]],
        "terms": list({term["label"]: term for term in (*earlier["terms"], *later["terms"])}.values()),
        "not_measured": [name for name in earlier["not_measured"] if name in later["not_measured"]],
        "worlds": worlds,
        "speed": later["speed"] or earlier["speed"],
    }


def read_discrimination(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of :func:`discrimination_result`; DataError for another."""
    return read_result(path, BENCHMARK, FORMAT)


def discrimination_tables(content: Mapping[str, Any]) -> str:
    """All tables, as Markdown; bounds of intervals in brackets."""
    parts = []
    for title, head, rows in tables(content):
        cells = [[f"`{label}`", *others] for label, *others in rows]
        parts += [f"**{title}**", "", *markdown_table(head, cells), ""]
    return "\n".join(parts)


def discrimination_page(content: Mapping[str, Any]) -> str:
    """All tables, as an HTML page that loads nothing."""
    runs = content["runs"]
    return render_page(
        "discrimination.html",
        title=BENCHMARK.capitalize(),
        tables=list(tables(content)),
        missing=content["not_measured"],
        facts=facts_of_page({"seed": content["seed"], **runs[-1]["machine"]}, runs[-1]["versions"]),
        commands={"Command" if len(runs) == 1 else f"Command {n}": run["command"] for n, run in enumerate(runs, 1)},
    )


def tables(content: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of every table; the first cell of a row is the label of a term."""
    for name, world in content["worlds"].items():
        what = f"{len(world['pictures'])} {name} at {world['side']} pixels"
        semantic, nuisance = (
            [kind["name"] for kind in world["kinds"] if kind["semantic"] is wanted] for wanted in (True, False)
        )
        ordering, across, ranges = [], [], []
        for label, found in world["terms"].items():
            within = {kind: number(entry["mean"]) for kind, entry in found["ordering"].items()}
            below = [number(found["semantic_below_mild"][kind]["mean"]) for kind in semantic]
            levels = [
                " ".join(number(entry["mean"]) for entry in found["semantic_below_nuisance"][kind]) for kind in nuisance
            ]
            each = [*(within[kind] for kind in semantic), _with_interval(found["ordering_semantic"])]
            each += [*(within[kind] for kind in nuisance), _with_interval(found["ordering_nuisance"])]
            spread = found["range"]
            bounds = spread["interval"]
            d_prime = number(spread["d_prime"], ".1f") + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")
            ordering.append([label, *each])
            across.append([label, *below, _with_interval(found["semantic_below_mild_all"]), *levels])
            numbers = [number(spread.get(key), ".3f") for key in ("identical", "other", "spread")]
            ranges.append([label, *numbers, d_prime])
        heads = (
            ("Orderings within a kind", [*semantic, "mean, semantic", *nuisance, "mean, nuisance"], ordering),
            ("Semantic damage below nuisance", [*semantic, "mean", *(f"{kind} 1 2 3 4" for kind in nuisance)], across),
            ("Range", ["itself", "another picture", "spread within a level", "d'"], ranges),
        )
        for title, head, rows in heads:
            yield f"{title}, {what}", ["term", *head], rows
    if sides := content["speed"]:
        head = ["term", *(f"{side} px, {entry['batch_size']} pairs a call" for side, entry in sides.items())]
        rows = [
            [label, *(f"{entry['terms'][label]['median']:.3g}" for entry in sides.values())]
            for label in next(iter(sides.values()))["terms"]
        ]
        yield "Processor time, milliseconds per pair", head, rows


def _with_interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return NOTHING
    return f"{found['mean']:.3f} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]"


def _commit() -> str | None:
    """Commit of the checkout this package runs from; None outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
