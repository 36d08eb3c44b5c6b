# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What inference takes from the rows of a data set: the prompt that asks for captions, and pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_uae.data.frame import PROBLEM, ROW, Row, chunks_of
from verl_uae.data.schema import IMAGE_MARK
from verl_uae.errors import DecodeError

if TYPE_CHECKING:
    from PIL import Image

PROMPT_COLUMN, IMAGE_COLUMN = "prompt", "images"


@dataclass(frozen=True, slots=True)
class CaptionPrompt:
    """One prompt of a data set: a user turn with the picture, and perhaps a system turn before it."""

    user: str
    system: str
    """"" where there is no system turn."""
    rows: int
    """Rows with this prompt."""
    total: int
    """Rows that were looked at."""

    @property
    def shared(self) -> bool:
        """Whether every row has it."""
        return self.rows == self.total


def most_frequent_prompt(prompts: Iterable[Any]) -> CaptionPrompt | None:
    """The most frequent prompt, the first of those that are equally frequent.

    Args:
        prompts: messages of each row.

    Returns:
        None where there is no row, or where that prompt is more than one system and one user turn with one picture.
    """
    counts: Counter[str] = Counter(json.dumps(prompt, sort_keys=True, default=_no_text) for prompt in prompts)
    if not counts:
        return None
    text, rows = counts.most_common(1)[0]
    turns = _turns(json.loads(text))
    return None if turns is None else CaptionPrompt(*turns, rows=rows, total=counts.total())


@dataclass(frozen=True, slots=True)
class RowPicture:
    """The first picture of a row, still encoded."""

    path: Path
    """Of the data file. A picture in a file of its own lies in its folder or below."""
    row: int
    """Zero-based."""
    cell: Any
    """As `decode_image` takes it; None where the row has no picture."""
    problem: str | None
    """Why it has none."""

    def decode(self) -> Image.Image:
        """The upright RGB picture.

        Raises:
            DecodeError: naming file and row: there is none, or it does not decode within the limits.
        """
        # Heavy: the command line imports this module for every command.
        from verl_uae.data.images import decode_image

        if self.problem is not None:
            raise DecodeError(self.path, self.row, self.problem)
        return decode_image(self.cell, path=self.path, row=self.row, root=self.path.absolute().parent)


def first_pictures(path: str | Path, count: int) -> list[RowPicture]:
    """The first picture of each of the first ``count`` rows of a parquet or JSON file.

    Raises:
        DataError: the file cannot be read or has no pictures.
    """
    rows = chain.from_iterable(chunks_of(str(path), frozenset((IMAGE_COLUMN,)), (IMAGE_COLUMN,)))
    return [_first_picture(row, Path(path)) for row in islice(rows, count)]


def _first_picture(row: Row, path: Path) -> RowPicture:
    cell, problem = row[IMAGE_COLUMN], row.get(PROBLEM)
    if problem is None and not (isinstance(cell, list) and cell):
        problem = f"column {IMAGE_COLUMN}: no list with a picture"
    return RowPicture(path, row[ROW], cell[0] if problem is None else None, problem)


def _no_text(value: Any) -> list[str]:
    """Stands for a value that JSON does not know, which is no text of a turn either."""
    return [repr(value)]


def _turns(messages: Any) -> tuple[str, str] | None:
    """Text of the user turn and of the system turn."""
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        return None
    roles = [message.get("role") for message in messages]
    texts = [message.get("content") for message in messages]
    if roles not in (["user"], ["system", "user"]) or not all(isinstance(text, str) and text for text in texts):
        return None
    user = texts[-1]
    return (user, texts[0] if len(texts) == 2 else "") if user.count(IMAGE_MARK) == 1 else None
