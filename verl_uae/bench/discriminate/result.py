# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a term's values say, as a file and as tables: orderings that are right, and how far apart they lie.

Values are higher for better pictures. A pair is right if the lighter damage has the higher value; a tie counts half.

Shape legend: N pictures, D versions of a picture (itself first), P pairs.
"""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verl_uae.bench.bootstrap import LEVEL, RESAMPLES, interval, resampled_means
from verl_uae.bench.discriminate.worlds import World
from verl_uae.bench.results import NOTHING, markdown_table, number, read_result, versions
from verl_uae.errors import ConfigError
from verl_uae.reward import TermSpec

BENCHMARK, FORMAT = "reward discrimination", 1
DIGITS = 6

#: Values as close as this, relative to the larger one, are a tie: rounding of fp32 must not decide a pair.
TIE = 1e-6

#: Nuisances whose lightest level counts as mild in the comparison across kinds.
MILD = ("blur", "hue")

LevelPair = tuple[int, int]
"""Places along D: lighter damage, heavier damage."""


def level_pairs(columns: Sequence[int]) -> list[LevelPair]:
    """(lighter, heavier) for every two levels of a kind."""
    return list(itertools.combinations(columns, 2))


def across_pairs(world: World, semantic: str, nuisances: Sequence[str] = MILD, level: int = 0) -> list[LevelPair]:
    """(level of a nuisance, level of a semantic kind that counts), by default the lightest level of the mild ones."""
    columns = world.columns()
    kind = next(kind for kind in world.kinds if kind.name == semantic)
    return [(columns[name][level], column) for name in nuisances for column in columns[semantic][kind.counted_from :]]


def pair_scores(values_ND: np.ndarray, pairs: Sequence[LevelPair]) -> np.ndarray:
    """Share (N) of the pairs that are right for a picture; NaN where one of its values is missing."""
    better_NP = values_ND[:, [first for first, _ in pairs]]
    worse_NP = values_ND[:, [second for _, second in pairs]]
    gap_NP = better_NP - worse_NP
    tied_NP = np.abs(gap_NP) <= TIE * np.maximum(np.abs(better_NP), np.abs(worse_NP))
    right_NP = np.where(tied_NP, 0.5, (gap_NP > 0).astype(np.float64))
    return np.where(np.isnan(gap_NP), np.nan, right_NP).mean(axis=1)


def accuracy(
    values_ND: np.ndarray, pairs: Sequence[LevelPair], seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Mean over pictures, 95% bootstrap interval over pictures, numbers of pairs and of pictures that count."""
    scores_N = pair_scores(values_ND, pairs)
    return _estimate(scores_N, seed, resamples) | {"pairs": len(pairs)}


def mean_accuracy(
    values_ND: np.ndarray, groups: Sequence[Sequence[LevelPair]], seed: int, resamples: int = RESAMPLES
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


def discrimination_result(
    worlds: Mapping[str, Mapping[str, Any]],
    specs: Sequence[TermSpec],
    missing: Sequence[str],
    speed: Mapping[str, Any],
    *,
    seed: int,
    command: str,
    commit: str | None,
) -> dict[str, Any]:
    """The contents of the result file, numbers with six digits.

    Args:
        worlds: by name, what :func:`world_result` says of each.
        specs: the terms.
        missing: names of terms that were not measured.
        speed: by side in pixels, see :func:`verl_uae.bench.discriminate.measure.milliseconds_per_pair`.
        seed: of damage and bootstrap.
        command: the command line.
        commit: see :func:`checkout_commit`.
    """
    content = {
        "benchmark": BENCHMARK,
        "format": FORMAT,
        "runs": [{"command": command, "commit": commit, "versions": versions(), "machine": _machine()}],
        "seed": seed,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "unit": "picture"},
        "tie": TIE,
        "mild": list(MILD),
        "terms": [{"label": spec.label, "name": spec.name, "params": dict(spec.params)} for spec in specs],
        "not_measured": list(missing),
        "worlds": dict(worlds),
        "speed": dict(speed),
    }
    # As it will be read again, so that results can be compared and merged.
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def world_result(world: World, values: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """What is said about the terms in one world.

    Args:
        world: the pictures.
        values: (N, D) of every term, by label.
        seed: of the bootstrap.
    """
    kinds = [
        {"name": kind.name, "levels": list(kind.levels), "unit": kind.unit, "semantic": kind.semantic}
        | ({"semantic_from_level": kind.counted_from + 1} if kind.semantic else {})
        for kind in world.kinds
    ]
    return {
        "side": world.side,
        "pictures": dict(zip(world.pictures, world.digests, strict=True)),
        "kinds": kinds,
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
    terms = {term["label"]: term for term in (*earlier["terms"], *later["terms"])}
    return {
        **later,
        "runs": [*earlier["runs"], *later["runs"]],
        "terms": list(terms.values()),
        "not_measured": [name for name in earlier["not_measured"] if name in later["not_measured"]],
        "worlds": worlds,
        "speed": later["speed"] or earlier["speed"],
    }


def read_discrimination(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of :func:`discrimination_result`.

    Raises:
        DataError: it is another file.
    """
    return read_result(path, BENCHMARK, FORMAT)


def discrimination_tables(content: Mapping[str, Any]) -> str:
    """All tables, as Markdown; bounds of intervals in brackets."""
    parts = []
    for name, world in content["worlds"].items():
        what = f"{len(world['pictures'])} {name} at {world['side']} pixels"
        parts += [f"**Orderings within a kind, {what}**", "", *_ordering(world), ""]
        parts += [f"**Semantic damage below nuisance, {what}**", "", *_across(world), ""]
        parts += [f"**Range, {what}**", "", *_range(world), ""]
    if content["speed"]:
        parts += ["**Processor time, milliseconds per pair**", "", *_speed(content["speed"]), ""]
    return "\n".join(parts)


def _ordering(world: Mapping[str, Any]) -> list[str]:
    kinds = [kind["name"] for kind in world["kinds"]]
    semantic = sum(kind["semantic"] for kind in world["kinds"])
    rows = []
    for label, found in world["terms"].items():
        each = [_share(found["ordering"][kind]) for kind in kinds]
        means = [_with_interval(found[f"ordering_{part}"]) for part in ("semantic", "nuisance")]
        rows.append([f"`{label}`", *each[:semantic], means[0], *each[semantic:], means[1]])
    head = ["term", *kinds[:semantic], "mean, semantic", *kinds[semantic:], "mean, nuisance"]
    return markdown_table(head, rows)


def _across(world: Mapping[str, Any]) -> list[str]:
    semantic = [kind["name"] for kind in world["kinds"] if kind["semantic"]]
    nuisance = [kind["name"] for kind in world["kinds"] if not kind["semantic"]]
    rows = []
    for label, found in world["terms"].items():
        each = [_share(found["semantic_below_mild"][kind]) for kind in semantic]
        levels = [" ".join(_share(entry) for entry in found["semantic_below_nuisance"][kind]) for kind in nuisance]
        rows.append([f"`{label}`", *each, _with_interval(found["semantic_below_mild_all"]), *levels])
    return markdown_table(["term", *semantic, "mean", *(f"{name} 1 2 3 4" for name in nuisance)], rows)


def _range(world: Mapping[str, Any]) -> list[str]:
    rows = []
    for label, found in world["terms"].items():
        spread = found["range"]
        bounds = spread["interval"]
        d_prime = number(spread["d_prime"], ".1f") + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")
        numbers = [number(spread.get(name), ".3f") for name in ("identical", "other", "spread")]
        rows.append([f"`{label}`", *numbers, d_prime])
    return markdown_table(["term", "itself", "another picture", "spread within a level", "d'"], rows)


def _speed(speed: Mapping[str, Any]) -> list[str]:
    sides = list(speed)
    rows = [
        [f"`{label}`", *(f"{speed[side]['terms'][label]['median']:.3g}" for side in sides)]
        for label in speed[sides[0]]["terms"]
    ]
    return markdown_table(["term", *(f"{side} px, {speed[side]['batch_size']} pairs a call" for side in sides)], rows)


def _share(found: Mapping[str, Any]) -> str:
    return number(found["mean"])


def _with_interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return NOTHING
    return f"{found['mean']:.3f} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]"


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def checkout_commit() -> str | None:
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
