# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of picture and caption, what the supervised stages learn from."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from verl_uae.data.captions import caption_problem
from verl_uae.data.frame import Row
from verl_uae.data.images import decode_image, upright_size
from verl_uae.data.limits import DEFAULT_LIMITS, ImageLimits
from verl_uae.data.rows import CheckSettings, RowDoor, Size, load_rows, sift
from verl_uae.data.schema import Message
from verl_uae.errors import DataError, DecodeError
from verl_uae.paths import expand
from verl_uae.text import printable

logger = logging.getLogger(__name__)

_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture, still encoded, and its caption. Small and picklable: made on the driver, decoded on a rank."""

    image: bytes
    """Encoded picture; empty where it has become unreadable since it was checked, see ``problem``."""
    caption: str
    digest: str | None
    """`images.image_digest` of the decoded picture as the data says, or None where it says nothing."""
    width: int
    """Of the upright picture, pixels: what the bucket is chosen by. It may be what the data claims, see `PairRows`."""
    height: int
    file: str
    """Data file or shard, for messages."""
    row: int
    """Zero-based row of the file, or number of the sample in its shard."""
    problem: str | None = None
    """Why ``image`` is empty."""
    prompt: tuple[Message, ...] | None = None
    """What the captioner is asked, with one ``<image>``; None where the data do not say."""

    @property
    def name(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, row {self.row}"

    @property
    def content_key(self) -> str:
        """SHA-256, in hex, of the encoded bytes: names the picture in a cache without decoding it."""
        return hashlib.sha256(self.image).hexdigest()

    @property
    def identity(self) -> str:
        """What names the picture in seeds: ``digest``, or ``content_key`` without one."""
        return self.digest or self.content_key

    def decode(self, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
        """The upright RGB picture. Raises `DecodeError`: naming file and row, if it does not decode within the
        limits."""
        if self.problem is not None:
            raise DecodeError(self.file, self.row, self.problem)
        return decode_image(self.image, limits=limits, path=self.file, row=self.row)


class PairRows(Dataset[Pair]):
    """Pairs from parquet files in the row schema of `data.schema`; the caption is ``extra_info.caption``.

    Every row is checked once, with the checks and settings of `UAEDataset`. A row without a caption is a bad row. Use
    it with a `buckets.BucketSampler` over `sizes` and ``collate_fn=list``.

    Args:
        files: parquet (or JSON) files.
        settings: of the check; ``verify_images`` also says where `sizes` come from: ``full`` the decoded picture,
            ``header`` its claims and EXIF orientation, ``off`` the row's own ``width`` and ``height`` where it has
            them, else as ``header``. A wrong size costs a worse crop and nothing else.
        max_samples: rows to use, all where it is not positive.
        shuffle, seed: draw those rows at random, as verl does.

    Attributes:
        sizes: (W, H) of every pair, upright, pixels.
        bad: rows that are left out; also in ``settings.quarantine_dir``.

    Raises:
        DataError: for an unreadable file, too many bad rows, or no usable one.
    """

    def __init__(
        self,
        files: str | PathLike[str] | Sequence[str | PathLike[str]],
        settings: CheckSettings | None = None,
        *,
        max_samples: int = -1,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        paths = [files] if isinstance(files, str | PathLike) else list(files)
        if not paths:
            raise DataError("<no file>", None, "at least one data file is needed")
        names = tuple(str(path) for path in paths)
        self.settings = settings or CheckSettings()
        self.door = RowDoor(tuple(str(expand(name)) for name in names), tuple(map(printable, names)), self.settings)
        self.frame = load_rows(self.door, max_samples, shuffle=shuffle, seed=seed)
        good, self.bad = sift(self.door, self.frame.chunks(), partial(inspect_pair, self.door))
        self.sizes = [size for _, size in good]
        self.door.judge(len(self.frame), self.bad)
        if self.bad:
            self.frame = self.frame.select(item for item, _ in good)
        logger.info("%s: %d pairs (%s)", ", ".join(self.door.names), len(good), self.settings.verify_images)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, item: int) -> Pair:
        """A pair; where its picture file has become unreadable, one with a ``problem``, which costs that sample."""
        row = self.frame[item]
        file, number = self.door.origin(row)
        info, (width, height) = row["extra_info"], self.sizes[item]
        try:
            image, problem = self.door.encoded(row, row[self.door.image_key][0]), None
        except DataError as error:
            image, problem = b"", error.message
        prompt = tuple(row[self.door.prompt_key])
        return Pair(image, info["caption"], stated_digest(info), width, height, file, number, problem, prompt)


def stated_digest(info: Mapping[str, Any]) -> str | None:
    """The `images.image_digest` that data state under ``sha256``; anything else in its place counts as none."""
    digest = info.get("sha256")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def inspect_pair(door: RowDoor, row: Row) -> Size | str:
    """(W, H) of the picture of a row, or the reason why it is no pair."""
    sizes = door.inspect(row)
    if isinstance(sizes, str):
        return sizes
    if len(sizes) > 1:
        return f"column {door.image_key}: a pair has one picture, got {len(sizes)}"
    info = row.get("extra_info") or {}
    problem = caption_problem(info.get("caption"))
    if problem is not None:
        return f"column extra_info: {problem}"
    if sizes[0] != (0, 0):
        return sizes[0]
    width, height = info.get("width"), info.get("height")
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        return (width, height)
    try:
        return upright_size(door.encoded(row, row[door.image_key][0]), limits=door.settings.image_limits)
    except DataError as error:
        return f"column {door.image_key}: {error.message}"
