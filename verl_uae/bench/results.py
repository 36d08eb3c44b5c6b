# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the results of all benchmarks share: failures, the file, what it was made with, and its table in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_uae import text
from verl_uae.errors import ConfigError, DataError
from verl_uae.paths import existing_file, named_path
from verl_uae.versions import versions as package_versions

RESULT, CAPTIONS = "result.json", "captions.jsonl"
"""Files of a run of protocol 1; their folder names them."""

NOTHING = "–"
"""In a table, where there is no number."""

_PACKAGES = ("torch", "torchvision", "transformers", "diffusers", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Failure:
    """What is missing from a result, and why."""

    what: str
    """A file, or the name of a backbone."""
    reason: str


def versions() -> dict[str, str]:
    """Of this package and of those that the numbers depend on."""
    return {**package_versions(_PACKAGES), "python": platform.python_version()}


def read_text(path: str | os.PathLike[str]) -> str:
    """A file of text, whose lines end with a line feed.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return text.read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """A file of JSON.

    Raises:
        DataError: it cannot be read.
    """
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
        path: JSON.
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


def incomplete(name: str, failures: Sequence[Mapping[str, str]]) -> str:
    """The note on a row of a table whose result lacks something."""
    first, *others = failures
    more = f", and {len(others)} more" if others else ""
    return f"* {escaped(name)} is incomplete: {first['what']}: {escaped(first['reason'])}{more}."


def with_notes(lines: Sequence[str], notes: Sequence[str]) -> str:
    """Lines, and below them the notes if there are any."""
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"
