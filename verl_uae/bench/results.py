# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the results of all benchmarks share: failures, intervals, the file, what it was made with, tables in Markdown.

Intervals are those of a percentile bootstrap (Efron 1979) over pairs, from named random numbers.

Shape legend: N pairs, K columns, R resamples.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_uae import text
from verl_uae.errors import ConfigError, DataError
from verl_uae.paths import existing_file, named_path
from verl_uae.versions import in_one_line
from verl_uae.versions import versions as package_versions

RESULT, CAPTIONS = "result.json", "captions.jsonl"
"""Files of a run of protocol 1; their folder names them."""

NOTHING = "–"
"""In a table, where there is no number."""

RESAMPLES = 10_000
LEVEL = 0.95
PURPOSE = "bench bootstrap"

#: Indices drawn at a time, to bound memory.
_CHUNK = 2_000_000

_PACKAGES = ("torch", "torchvision", "transformers", "diffusers", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Failure:
    """What is missing from a result, and why."""

    what: str
    """A file, or the name of a backbone."""
    reason: str


def resampled_means(values_NK: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Column means (R, K) of rows drawn with replacement; a row stays whole, so columns keep their correlation.

    The rows drawn depend on ``seed``, N and R alone: equal for all tables of N rows.

    Raises:
        ValueError: there is no row.
    """
    import torch

    from verl_uae.seeding import generator

    count = len(values_NK)
    if count == 0:
        raise ValueError("no pair to draw from")
    source = generator(seed, PURPOSE, count)
    step = max(1, _CHUNK // count)
    means = []
    for start in range(0, resamples, step):
        drawn_RN = torch.randint(count, (min(step, resamples - start), count), generator=source).numpy()
        means.append(values_NK[drawn_RN].mean(axis=1))
    return np.concatenate(means)


def interval(samples_R: np.ndarray | Sequence[float], level: float = LEVEL) -> list[float]:
    """[low, high]: the central part of the samples that holds ``level`` of them."""
    tail = 0.5 * (1.0 - level)
    bounds: list[float] = np.quantile(np.asarray(samples_R, dtype=np.float64), [tail, 1.0 - tail]).tolist()
    return bounds


def versions() -> dict[str, str]:
    """Of this package and of those that the numbers depend on."""
    return {**package_versions(_PACKAGES), "python": platform.python_version()}


def own_command() -> str:
    """What was typed to make a result, without what stands before the host in addresses."""
    return re.sub(r"//[^/@\s]+@", "//***@", shlex.join(["verl-uae", *sys.argv[1:]]))


def facts_of_page(about: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, str]:
    """What a page says of how a result was made: what has a value, and versions as :func:`versions` has them."""
    facts = {name.replace("_", " "): str(value) for name, value in about.items() if value is not None}
    return {**facts, "versions": in_one_line(found)}


def made(about: Mapping[str, Any], content: Mapping[str, Any], command: str | None) -> dict[str, dict[str, str]]:
    """What the pages of both protocols say of how a result was made: ``facts`` and ``commands`` of their template."""
    seed = {"seed of the intervals": content["seeds"]["bootstrap"]}
    commands = {} if command is None else {"Command": command}
    return {"facts": facts_of_page({**about, **seed}, content["versions"]), "commands": commands}


def read_text(path: str | os.PathLike[str]) -> str:
    """A file of text, whose lines end with a line feed; DataError if it cannot be read."""
    try:
        return text.read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """A file of JSON; DataError if it cannot be read."""
    content = read_text(path)
    try:
        return text.parse_json(content)
    except ValueError as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def read_result(
    path: str | os.PathLike[str], benchmark: str, version: int, section: str | None = None
) -> dict[str, Any]:
    """A result that says of which benchmark and in which version of its form it is.

    Args:
        benchmark: what ``benchmark`` must be.
        version: what ``format`` must be.
        section: key of the part that says so; None: the whole.

    Raises:
        DataError: it is another file.
    """
    content = read_json(path)
    head = content.get(section) if section is not None and isinstance(content, dict) else content
    if not isinstance(head, dict) or (head.get("benchmark"), head.get("format")) != (benchmark, version):
        raise DataError(path, None, f"is not a result of {benchmark} by this version")
    return dict(content)


def check_least(args: argparse.Namespace, least: Mapping[str, float], unit: str = "") -> None:
    """Refuse numbers of the command line that are below the least of their option; None is one not given.

    Raises:
        ConfigError: naming the first such option, and the unit of its values.
    """
    for option, low in least.items():
        value = getattr(args, option.removeprefix("--").replace("-", "_"))
        # NaN is not at least anything.
        if value is not None and not value >= low:
            raise ConfigError(option, f"must be at least {low}{unit and f' {unit}'}, got {value}")


def named(word: str) -> tuple[str, Path]:
    """A name and a path of the command line from ``NAME=PATH`` or ``PATH``.

    Without a name a file has that of its stem, and a folder its own; files that are called alike in every run have the
    name of their folder.
    """
    name, path = named_path(word)
    if not name and path.name in (RESULT, CAPTIONS):
        name = path.resolve().parent.name
    return name or (path.resolve().name if path.is_dir() else path.stem), path


def named_files(words: Iterable[str]) -> dict[str, Path]:
    """Files of the command line by :func:`named`.

    Raises:
        ConfigError: two have one name.
        DataError: there is no such file.
    """
    files: dict[str, Path] = {}
    for name, path in map(named, words):
        if name in files:
            raise ConfigError("results", f"two are named {name!r}; name them with NAME=FILE")
        files[name] = existing_file(path)
    return files


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[int] = (0,)) -> list[str]:
    """The lines of a table; columns are aligned right, but those of ``words`` left."""
    rule = ["---" if place in words else "---:" for place in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def number(value: float | None, form: str = ".2f") -> str:
    """A number as the cell of a table."""
    return NOTHING if value is None else format(value, form)


def escaped(cell: str) -> str:
    """A text that is one cell of a table."""
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())


def between(bounds: Sequence[float] | None, form: str = ".2f") -> str:
    """An interval as the cell of a table."""
    return NOTHING if bounds is None else f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def incomplete(name: str, failures: Sequence[Mapping[str, str]]) -> str:
    """The note on a row of a table whose result lacks something."""
    first, *others = failures
    more = f", and {len(others)} more" if others else ""
    return f"* {escaped(name)} is incomplete: {first['what']}: {escaped(first['reason'])}{more}."


def without_overall(failures: Sequence[Mapping[str, str]]) -> str:
    """What a command prints in place of the overall score: the number of failures, and the first of them."""
    return "\n".join(
        [
            f"overall: none, {len(failures)} failures",
            *(f"  {failure['what']}: {failure['reason']}" for failure in failures[:20]),
        ]
    )


def with_notes(lines: Sequence[str], notes: Sequence[str]) -> str:
    """Lines, and below them the notes if there are any."""
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"
