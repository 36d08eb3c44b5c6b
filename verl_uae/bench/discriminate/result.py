# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The result file, and its tables as Markdown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verl_uae.bench.bootstrap import LEVEL, RESAMPLES
from verl_uae.bench.discriminate.accuracy import MILD, TIE, summary
from verl_uae.bench.discriminate.worlds import World
from verl_uae.bench.unified import versions
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import write_json
from verl_uae.reward import TermSpec

BENCHMARK, FORMAT = "reward discrimination", 1
NOTHING = "–"
DIGITS = 6


def result(
    worlds: Mapping[str, tuple[World, Mapping[str, np.ndarray]]],
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
        worlds: by name, the world and the values (N, D) of every term.
        specs: the terms.
        missing: names of terms that were not measured.
        speed: by side in pixels, see :func:`verl_uae.bench.discriminate.speed.milliseconds_per_pair`.
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
        "worlds": {name: _world(world, values, seed) for name, (world, values) in worlds.items()},
        "speed": dict(speed),
    }
    # As it will be read again, so that results can be compared and merged.
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def _world(world: World, values: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
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


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write the result."""
    write_json(path, content)


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_result` wrote.

    Raises:
        DataError: it is not a result of this version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error
    if not isinstance(content, dict) or (content.get("benchmark"), content.get("format")) != (BENCHMARK, FORMAT):
        raise DataError(path, None, f"is not a result of {BENCHMARK!r} by this version")
    return content


def render(content: Mapping[str, Any]) -> str:
    """All tables, as Markdown; bounds of intervals in brackets."""
    parts = []
    for name, world in content["worlds"].items():
        parts += [f"**Orderings within a kind, {_what(name, world)}**", "", *_ordering(world), ""]
        parts += [f"**Semantic damage below nuisance, {_what(name, world)}**", "", *_across(world), ""]
        parts += [f"**Range, {_what(name, world)}**", "", *_range(world), ""]
    if content["speed"]:
        parts += ["**Processor time, milliseconds per pair**", "", *_speed(content["speed"]), ""]
    return "\n".join(parts)


def _what(name: str, world: Mapping[str, Any]) -> str:
    return f"{len(world['pictures'])} {name} at {world['side']} pixels"


def _ordering(world: Mapping[str, Any]) -> Iterable[str]:
    kinds = [kind["name"] for kind in world["kinds"]]
    semantic = sum(kind["semantic"] for kind in world["kinds"])
    head = [*kinds[:semantic], "mean, semantic", *kinds[semantic:], "mean, nuisance"]
    yield from _head(["term", *head])
    for label, found in world["terms"].items():
        each = [_share(found["ordering"][kind]) for kind in kinds]
        means = [_with_interval(found[f"ordering_{part}"]) for part in ("semantic", "nuisance")]
        yield _line([f"`{label}`", *each[:semantic], means[0], *each[semantic:], means[1]])


def _across(world: Mapping[str, Any]) -> Iterable[str]:
    semantic = [kind["name"] for kind in world["kinds"] if kind["semantic"]]
    nuisance = [kind["name"] for kind in world["kinds"] if not kind["semantic"]]
    yield from _head(["term", *semantic, "mean", *(f"{name} 1 2 3 4" for name in nuisance)])
    for label, found in world["terms"].items():
        each = [_share(found["semantic_below_mild"][kind]) for kind in semantic]
        levels = [" ".join(_share(entry) for entry in found["semantic_below_nuisance"][kind]) for kind in nuisance]
        yield _line([f"`{label}`", *each, _with_interval(found["semantic_below_mild_all"]), *levels])


def _range(world: Mapping[str, Any]) -> Iterable[str]:
    yield from _head(["term", "itself", "another picture", "spread within a level", "d'"])
    for label, found in world["terms"].items():
        spread = found["range"]
        numbers = [_number(spread.get(name)) for name in ("identical", "other", "spread")]
        bounds = spread["interval"]
        d_prime = NOTHING if spread["d_prime"] is None else f"{spread['d_prime']:.1f}"
        yield _line([f"`{label}`", *numbers, d_prime + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")])


def _speed(speed: Mapping[str, Any]) -> Iterable[str]:
    sides = list(speed)
    yield from _head(["term", *(f"{side} px, {speed[side]['batch_size']} pairs a call" for side in sides)])
    for label in speed[sides[0]]["terms"]:
        yield _line([f"`{label}`", *(f"{speed[side]['terms'][label]['median']:.3g}" for side in sides)])


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---", *["---:"] * (len(cells) - 1)])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _share(found: Mapping[str, Any]) -> str:
    return NOTHING if found["mean"] is None else f"{found['mean']:.2f}"


def _with_interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return NOTHING
    return f"{found['mean']:.3f} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


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
