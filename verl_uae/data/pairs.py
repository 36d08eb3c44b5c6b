# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of picture and caption, what the supervised stages learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from PIL import Image
from torch.utils.data import Dataset

from verl_uae.data.images import decode_image
from verl_uae.data.limits import DEFAULT_LIMITS, ImageLimits
from verl_uae.data.quarantine import BadItem
from verl_uae.errors import DecodeError


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
        """The upright RGB picture.

        Raises:
            DecodeError: naming file and row, if it does not decode within the limits.
        """
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
        bad: rows that are left out.

    Raises:
        DataError: for an unreadable file, too many bad rows, or no usable one.
    """

    sizes: list[tuple[int, int]]
    bad: list[BadItem]

    def __init__(
        self,
        files: str | PathLike[str] | Sequence[str | PathLike[str]],
        settings: object = None,
        *,
        max_samples: int = -1,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, item: int) -> Pair:
        """A pair; where its picture file has become unreadable, one with a ``problem``, which costs that sample."""
        raise NotImplementedError
