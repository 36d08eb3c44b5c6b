# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where bad files and rows go: a JSON-lines list with the reason for each."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
