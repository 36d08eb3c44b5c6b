# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where bad files and rows go: a JSON-lines list with the reason for each, and files published by rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from verl_uae.text import encodable, one_line


@dataclass(frozen=True, slots=True)
class BadItem:
    """One file, or one zero-based row of a file, that was left out, and why."""

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        return one_line(f"{where}: {self.reason}")


@contextmanager
def published(*paths: Path) -> Iterator[list[Path]]:
    """Yield a temporary path beside each given one; rename all of them, in order, once the block has succeeded.

    Each file is on disk before its rename, so a name never stands for half a file. After an error nothing is renamed
    and the temporary files are removed. Temporary files that the block did not create are skipped.
    """
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        yield temporary
        written = [(source, path) for source, path in zip(temporary, paths, strict=True) if source.exists()]
        for source, _ in written:
            with open(source, "rb") as file:
                os.fsync(file.fileno())
        for source, path in written:
            os.replace(source, path)
    finally:
        for source in temporary:
            source.unlink(missing_ok=True)


def write_items(path: Path, items: Iterable[BadItem]) -> None:
    """Write one JSON object ``{"file", "row", "reason"}`` a line."""
    with open(path, "w", encoding="utf-8") as file:
        for item in items:
            file.write(_line(item) + "\n")


class ItemList:
    """A list that grows while data is streamed: each item once, also over restarts. The format is `write_items`'.

    Args:
        path: the file; begun if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        self._known = set(text.split("\n"))
        # A process that was killed, or a full disk, leaves half a line.
        self._start = "" if not text or text.endswith("\n") else "\n"

    def add(self, item: BadItem) -> None:
        """Append an item, unless it is listed."""
        line = _line(item)
        if line not in self._known:
            self._known.add(line)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{self._start}{line}\n")
            self._start = ""


def _line(item: BadItem) -> str:
    return encodable(json.dumps(asdict(item), ensure_ascii=False))
