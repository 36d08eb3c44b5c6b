# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of data files, the checks each goes through once, for every data set of this package, and the list of bad ones.

Knows no verl.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from verl_uae.data.frame import FILE, PROBLEM, ROW, Frame, Row, check_columns, open_rows
from verl_uae.data.images import ImageLimits, decode_image, encoded_bytes, upright_size
from verl_uae.data.schema import MEDIA_TOKENS, row_problem
from verl_uae.errors import ConfigError, DataError, without_credentials
from verl_uae.files import append_line, write_text
from verl_uae.paths import expand
from verl_uae.settings import check_fields, key
from verl_uae.text import encodable, fitting_name, one_line, printable

logger = logging.getLogger(__name__)

_RESIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")

Verdict = TypeVar("Verdict")

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class BadItem:
    """One file, or one zero-based row of a file, that was left out, and why."""

    file: str
    row: int | None
    reason: str

    def __post_init__(self) -> None:
        for name in ("file", "reason"):
            object.__setattr__(self, name, without_credentials(getattr(self, name)))

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        return one_line(f"{where}: {self.reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """Our keys under ``data:``, all optional, each with the prefix ``uae_``."""

    verify_images: str = key("full", choices=("full", "header", "off"))
    """``full``: decode every picture once before training; ``header``: only read its claims; ``off``: neither.
    Whatever the mode, rows are checked for their form and pictures are checked again when they are used."""
    max_bad_share: float = key(0.1, at_least=0, at_most=1)
    """Largest share of bad rows to go on with, in [0, 1]; overlong rows that verl was told to filter do not count."""
    quarantine_dir: str | None = None
    """Folder for ``quarantine_<file>.jsonl``; with ``${trainer.default_local_dir}`` it lies with the checkpoints."""
    image_root: str | None = None
    """Folder that pictures given by path must lie in; default: the folder of the data file."""
    threads: int = key(4, at_least=1)
    """Decoding threads of the check."""
    log_first: int = key(5, at_least=0)
    """Number of bad rows named in the log."""
    image_limits: ImageLimits = ImageLimits()  # noqa: RUF009 - frozen
    """What the door refuses: a mapping with the fields of `ImageLimits`."""

    def __post_init__(self) -> None:
        check_fields(self, "data.uae_")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CheckSettings:
        """Read the keys from verl's ``data`` section; raises `ConfigError` naming an unknown or impossible one."""
        field_names = {field.name for field in fields(cls)}
        values = {str(key)[4:]: config[key] for key in config if str(key).startswith("uae_")}
        if unknown := sorted(set(values) - field_names):
            names = ", ".join(f"uae_{name}" for name in sorted(field_names))
            raise ConfigError(f"data.uae_{unknown[0]}", f"unknown key; known: {names}")
        # YAML reads a bare `off` as false.
        if isinstance(values.get("verify_images"), bool):
            values["verify_images"] = "full" if values["verify_images"] else "off"
        if values.get("image_limits") is not None:
            try:
                values["image_limits"] = ImageLimits(**values["image_limits"])
            except (TypeError, ValueError) as error:
                raise ConfigError("data.uae_image_limits", str(error)) from error
        return cls(**{key: value for key, value in values.items() if value is not None})

    def check_share(self, file: str, bad: int, total: int, what: str, example: str) -> None:
        """Raise `DataError` if more of the rows or samples of a file are bad than may be."""
        if bad > self.max_bad_share * total:
            limit = f"more than data.uae_max_bad_share={self.max_bad_share:g}"
            raise DataError(file, None, f"{bad} of {total} {what} are bad, {limit}; {example}")


@dataclass(frozen=True, slots=True)
class RowDoor:
    """Checks rows and decodes their pictures. Holds no rows, so it is cheap to copy and to send."""

    files: tuple[str, ...]
    """The files as they are read, for paths beside them."""
    names: tuple[str, ...]
    """The same files as the user named them, for messages."""
    settings: CheckSettings
    prompt_key: str = "prompt"
    image_key: str = "images"
    refused_keys: tuple[str, ...] = ("videos", "audios")
    refused_text: tuple[str, ...] = MEDIA_TOKENS
    """See `schema.row_problem`."""

    @property
    def needed(self) -> frozenset[str]:
        """Columns in which a value that cannot be read costs its row; in others it is None."""
        used = ("data_source", "reward_model", "extra_info")
        return frozenset((self.prompt_key, self.image_key, *self.refused_keys, *used))

    @property
    def must_have(self) -> tuple[str, ...]:
        """Columns that a file must have."""
        return (self.image_key, self.prompt_key)

    def inspect(self, row: Row) -> list[Size] | str:
        """(W, H) of the pictures of a row, (0, 0) where they are not looked at, or the reason why the row is bad."""
        keys = (self.prompt_key, self.image_key, self.refused_keys, self.refused_text)
        if (problem := row.get(PROBLEM) or row_problem(row, *keys)) is not None:
            return problem
        try:
            return [self._size(row, cell) for cell in row[self.image_key]]
        except DataError as error:
            return f"column {self.image_key}: {error.message}"

    def _size(self, row: Row, cell: Any) -> Size:
        mode, limits = self.settings.verify_images, self.settings.image_limits
        options = resize_options(cell)
        pixels = max(options.get("min_pixels", 0), options.get("resized_width", 0) * options.get("resized_height", 0))
        if pixels > limits.max_pixels:
            raise DataError("<image cell>", None, f"asks to be enlarged to {pixels} pixels, limit {limits.max_pixels}")
        if mode == "off":
            return (0, 0)
        if mode == "header":
            return upright_size(self.encoded(row, cell), limits=limits)
        return self.decode(row, cell).size

    def decode(self, row: Row, cell: Any) -> Image.Image:
        """A picture of a row; raises `DecodeError` naming file and row."""
        return decode_image(cell, **self._rules(row))

    def encoded(self, row: Row, cell: Any) -> bytes:
        """A picture of a row as it is stored; raises `DecodeError` naming file and row."""
        return encoded_bytes(cell, **self._rules(row))

    def _rules(self, row: Row) -> dict[str, Any]:
        file, number = self.origin(row)
        return {"limits": self.settings.image_limits, "path": file, "row": number, "root": self.image_root(row)}

    def origin(self, row: Row) -> tuple[str, int]:
        """The file, as the user named it, and the zero-based row in it."""
        return self.names[row[FILE]], row[ROW]

    def bad(self, row: Row, reason: str) -> BadItem:
        """The row as an entry of the quarantine file."""
        return BadItem(*self.origin(row), reason)

    def image_root(self, row: Row) -> Path:
        """Folder that pictures given by path must lie in."""
        if self.settings.image_root is not None:
            return expand(self.settings.image_root)
        return Path(self.files[row[FILE]]).resolve().parent

    def judge(
        self,
        total: int,
        bad: Sequence[BadItem],
        overlong: Sequence[BadItem] = (),
        *,
        remedy: str = "",
        strict: bool = False,
    ) -> None:
        """List the rows that are left out of so many, also when there is none, and log the first of them. ``remedy`` is
        against overlong ones, which stop the run where it is ``strict``. Raises `DataError`: more rows are bad than the
        settings allow, one is overlong, or none is left."""
        name = self.names[0]
        if (folder := self.settings.quarantine_dir) is not None:
            write_text(quarantine_path(folder, self.names), item_lines([*bad, *overlong]), sync=True)
        first = "".join(f"first: {item}" for item in bad[:1])
        self.settings.check_share(name, len(bad), total, "rows", first)
        if overlong and strict:
            share = f"{len(overlong)} of {total} rows are too long"
            raise DataError(name, None, f"{share}{remedy}, or set data.filter_overlong_prompts=true")
        if len(bad) + len(overlong) >= total:
            more = f", {len(overlong)} too long{remedy}" if overlong else ""
            raise DataError(name, None, f"no usable row: {total} rows, {len(bad)} bad{more}")
        for kind, items in (("bad", bad), ("too long", overlong)):
            if items:
                first = "; ".join(map(str, items[: self.settings.log_first]))
                logger.warning("%d of %d rows are %s and left out, first: %s", len(items), total, kind, first)


def inspected(
    chunks: Iterable[list[Row]], threads: int, inspect: Callable[[Row], Verdict]
) -> Iterator[tuple[int, Row, Verdict]]:
    """Every row with its place and what ``inspect`` gave, in order; ``inspect`` runs in threads."""
    item = 0
    with ThreadPoolExecutor(threads) as pool:
        for rows in chunks:
            yield from zip(range(item, item + len(rows)), rows, pool.map(inspect, rows), strict=True)
            item += len(rows)


def sift(
    door: RowDoor, chunks: Iterable[list[Row]], inspect: Callable[[Row], Verdict | str]
) -> tuple[list[tuple[int, Verdict]], list[BadItem]]:
    """Places of the good rows with what ``inspect`` gave for each, and the bad rows: those it gave a reason for."""
    good: list[tuple[int, Verdict]] = []
    bad: list[BadItem] = []
    for item, row, verdict in inspected(chunks, door.settings.threads, inspect):
        if isinstance(verdict, str):
            bad.append(door.bad(row, verdict))
        else:
            good.append((item, verdict))
    return good, bad


def quarantine_path(folder: str, names: Sequence[str]) -> Path:
    """Where the bad rows of some files are listed, as ``quarantine_<first file>_<hash of the names>.jsonl``."""
    directory = expand(folder)
    directory.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256("\n".join(map(printable, names)).encode()).hexdigest()[:8]
    return directory / fitting_name(f"quarantine_{Path(names[0]).stem}", f"_{digest}.jsonl")


def item_lines(items: Iterable[BadItem]) -> str:
    """A list of bad items as text: one JSON object ``{"file", "row", "reason"}`` a line."""
    return "".join(f"{_line(item)}\n" for item in items)


class ItemList:
    """A file that grows while data is streamed: each item once, also over restarts, in the format of `item_lines`."""

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
            append_line(self.path, f"{self._start}{line}")
            self._start = ""


def _line(item: BadItem) -> str:
    return encodable(json.dumps(asdict(item), ensure_ascii=False))


def load_rows(door: RowDoor, max_samples: int, *, shuffle: bool, seed: int | None) -> Frame:
    """The rows of the files of a door, or some of them, see `choose_rows`. Raises `DataError`: for a file that cannot
    be read or lacks a column that is needed."""
    parts = [open_rows(file, door.needed) for file in door.files]
    for name, part in zip(door.names, parts, strict=True):
        check_columns(part.columns, name, door.must_have)
    frame = Frame(parts)
    chosen = choose_rows(len(frame), max_samples, shuffle=shuffle, seed=seed)
    return frame if chosen is None else frame.select(chosen)


def choose_rows(total: int, max_samples: int, *, shuffle: bool, seed: int | None) -> list[int] | None:
    """Rows to start from, None for all; the draw is verl's, so ``train_max_samples`` picks the same rows."""
    if not 0 < max_samples < total:
        return None
    if not shuffle:
        return list(range(max_samples))
    chosen: Any = np.random.default_rng(seed).choice(total, size=max_samples, replace=False)
    return chosen.tolist()


def resize_options(cell: Any) -> dict[str, int]:
    """Qwen's per-picture size options in a cell. Raises `DataError`: if one is not a positive integer, or only one of
    the two resized sides is given."""
    if not isinstance(cell, Mapping):
        return {}
    options = {key: cell[key] for key in _RESIZE_KEYS if cell.get(key) is not None}
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError("<image cell>", None, f"{name} must be a positive integer, got {value!r}")
    if ("resized_height" in options) != ("resized_width" in options):
        raise DataError("<image cell>", None, "resized_height and resized_width go together")
    return options
