# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The parquet rows of verl, as this package writes and checks them, and what inference takes from them.

One row is one picture and the prompt that asks for its caption. The columns are the ones verl's ``RLHFDataset`` and
reward managers read; ``extra_info`` holds what only this package needs.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_uae.data.frame import PROBLEM, ROW, chunks_of
from verl_uae.errors import DataError, DecodeError
from verl_uae.text import text_problem

if TYPE_CHECKING:
    from PIL import Image

PROMPT_COLUMN, IMAGE_COLUMN = "prompt", "images"

IMAGE_MARK = "<image>"
"""Where a picture goes in a prompt; verl replaces it by the picture."""
ROLES: tuple[str, ...] = ("system", "user", "assistant")

SYSTEM_PROMPT = "You are an expert at looking at pictures and describing them."
USER_PROMPT = (
    f"{IMAGE_MARK}\nDescribe this image in full, so that somebody who has never seen it could draw it again. "
    'If there is any text in it, copy that text exactly and put it in "double quotes". '
    "Study the whole image before you answer, then write only the complete description."
)
"""The captioning task of UAE (arXiv 2509.09666v5, sampling prompt of Unified-GRPO) in our own words."""

MEDIA_TOKENS: tuple[str, ...] = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
"""What Qwen's processors put in place of a picture. In a prompt they would shift its features against their places."""

Message = dict[str, str]
_ROW_GROUP_BYTES = 32 * 2**20
_ROW_GROUP_ROWS = 256
_MEDIA_MARK = re.compile("<image>|<video>|<audio>")
_EXTRA_INFO: dict[str, pa.DataType] = {
    "index": pa.int64(),
    "split": pa.string(),
    "sha256": pa.string(),
    "source": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "caption": pa.string(),
}


def row_schema(extra: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """The Arrow schema of a file, with ``extra`` fields of ``extra_info``; ``ValueError`` for one that exists."""
    if clash := sorted(set(extra or ()) & set(_EXTRA_INFO)):
        raise ValueError(f"extra_info already has the fields {clash}")
    text = pa.string()
    return pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": text})),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct({**_EXTRA_INFO, **(extra or {})}),
        }
    )


def make_prompt(user: str = USER_PROMPT, system: str | None = SYSTEM_PROMPT) -> list[Message]:
    """A system turn (unless None) and a user turn; a user text without ``<image>`` gets one in front."""
    if IMAGE_MARK not in user:
        user = f"{IMAGE_MARK}\n{user}"
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": user}]


def make_row(
    image: bytes,
    *,
    index: int,
    split: str,
    sha256: str,
    prompt: Sequence[Message] | None = None,
    data_source: str = "uae",
    source: str | None = None,
    size: tuple[int, int] | None = None,
    caption: str | None = None,
    ability: str = "reconstruction",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One row.

    Args:
        image: encoded bytes (PNG, JPEG or WebP).
        index: number of the row within its split, ``"train"`` or ``"val"``.
        sha256: `images.image_digest` of the decoded picture; names the picture in seeds and logs.
        prompt: messages with one ``<image>``; default: `make_prompt`.
        data_source: what verl groups validation metrics by.
        source: where the picture came from, e.g. its path in the packed folder.
        size: (W, H), pixels.
        caption: reference caption, where one exists. It is also verl's ``ground_truth``, which must be a string and is
            "" without a caption; the reconstruction reward reads neither.
        ability: verl's task label.
        extra: further fields of ``extra_info``.

    Raises `DataError`: the result is not a valid row.
    """
    width, height = size or (None, None)
    info = {"index": index, "split": split, "sha256": sha256, "source": source, "width": width, "height": height}
    row = {
        "data_source": data_source,
        "prompt": [dict(message) for message in (make_prompt() if prompt is None else prompt)],
        "images": [{"bytes": image, "path": source}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": caption or ""},
        "extra_info": {**info, "caption": caption, **(extra or {})},
    }
    if (problem := row_problem(row)) is not None:
        raise DataError(source or "<row>", index, problem)
    return row


def write_parquet(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of `make_row`, a row group at a time."""
    schema, group, size = row_schema(), list[dict[str, Any]](), 0
    with pq.ParquetWriter(path, schema) as writer:
        for row in rows:
            group.append(row)
            size += len(row["images"][0]["bytes"])
            if size >= _ROW_GROUP_BYTES or len(group) >= _ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def row_problem(
    row: Mapping[str, Any],
    prompt_key: str = "prompt",
    image_key: str = "images",
    refused_keys: Iterable[str] = ("videos", "audios"),
    refused_text: Sequence[str] = MEDIA_TOKENS,
) -> str | None:
    """What is wrong with a row, naming the column, or None. Looks at the form only; pictures are not decoded.

    Stricter than verl where verl would fail or open a picture by itself later: message contents are plain strings (a
    structured content may hold a URL that qwen_vl_utils downloads), there are pictures and nothing but pictures, and
    one ``<image>`` for each. Refused keys are columns that must be empty, refused texts what no message may contain,
    such as `media_tokens`.
    """
    if (problem := _prompt_problem(row.get(prompt_key), refused_text)) is not None:
        return f"column {prompt_key}: {problem}"
    for key in refused_keys:
        if row.get(key):
            return f"column {key}: only pictures are supported"
    images = row.get(image_key)
    if not isinstance(images, list) or not images:
        return f"column {image_key}: must be a list with at least one picture, got {_kind(images)}"
    marks = [mark for message in row[prompt_key] for mark in _MEDIA_MARK.findall(message["content"])]
    if marks != [IMAGE_MARK] * len(images):
        return f"column {prompt_key}: {len(images)} pictures but the marks {marks}"
    info = row.get("extra_info")
    if info is not None and not isinstance(info, Mapping):
        return f"column extra_info: must be a mapping, got {_kind(info)}"
    caption = (info or {}).get("caption")
    problem = text_problem(caption) if isinstance(caption, str) else None
    return None if problem is None else f"column extra_info: caption holds {problem}"


def media_tokens(processor: Any) -> tuple[str, ...]:
    """`MEDIA_TOKENS` and those of a processor, which may be None."""
    tokens = (getattr(processor, name, None) for name in ("image_token", "video_token", "audio_token"))
    return tuple(dict.fromkeys((*MEDIA_TOKENS, *(token for token in tokens if isinstance(token, str) and token))))


def _prompt_problem(prompt: object, refused_text: Sequence[str]) -> str | None:
    if not isinstance(prompt, list) or not prompt:
        return f"must be a list of messages, got {_kind(prompt)}"
    for number, message in enumerate(prompt):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            return f"message {number} has the role {role!r}, expected one of {', '.join(ROLES)}"
        content = message.get("content")
        if not isinstance(content, str):
            return f"message {number} must have a plain string as content, got {_kind(content)}"
        if (problem := text_problem(content)) is not None:
            return f"message {number} holds {problem}"
        if token := next((text for text in refused_text if text in content), None):
            return f"message {number} contains the special token {token}"
    return None


def _kind(value: object) -> str:
    return "an empty list" if isinstance(value, list) and not value else type(value).__name__


# ------------------------------------------------------------ what inference takes from rows


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


def most_frequent_prompt(prompts: Iterable[Any]) -> CaptionPrompt | None:
    """The most frequent of prompts, each the messages of a row; the first of those that are equally frequent.

    None where there is no row, or where that prompt is more than one system and one user turn with one picture.
    """
    # What stands for a value that JSON does not know is no text of a turn either.
    counts = Counter(json.dumps(prompt, sort_keys=True, default=lambda value: [repr(value)]) for prompt in prompts)
    if not counts:
        return None
    text, rows = counts.most_common(1)[0]
    system = ""
    match json.loads(text):
        case [{"role": "user", "content": str(user)}]:
            pass
        case [{"role": "system", "content": str(system)}, {"role": "user", "content": str(user)}] if system:
            pass
        case _:
            return None
    return CaptionPrompt(user, system, rows, counts.total()) if user.count(IMAGE_MARK) == 1 else None


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
        """The upright RGB picture; `DecodeError` naming file and row if there is none that decodes in the limits."""
        # Heavy: the command line imports this module for every command.
        from verl_uae.data.images import decode_image

        if self.problem is not None:
            raise DecodeError(self.path, self.row, self.problem)
        return decode_image(self.cell, path=self.path, row=self.row, root=self.path.absolute().parent)


def first_pictures(path: str | Path, count: int) -> list[RowPicture]:
    """The first picture of each of the first ``count`` rows of a parquet or JSON file. Raises `DataError`: the file
    cannot be read or lacks the column."""
    pictures = []
    for row in islice(chain.from_iterable(chunks_of(str(path), frozenset((IMAGE_COLUMN,)), (IMAGE_COLUMN,))), count):
        cell, problem = row[IMAGE_COLUMN], row.get(PROBLEM)
        if problem is None and not (isinstance(cell, list) and cell):
            problem = f"column {IMAGE_COLUMN}: no list with a picture"
        pictures.append(RowPicture(Path(path), row[ROW], cell[0] if problem is None else None, problem))
    return pictures
