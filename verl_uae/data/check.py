# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Checking a data file that is there already, with the code that training checks it with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from verl_uae.data.frame import chunks_of, file_kind
from verl_uae.data.limits import ImageLimits
from verl_uae.data.pairs import Pair, inspect_pair
from verl_uae.data.quarantine import BadItem
from verl_uae.data.rows import CheckSettings, RowDoor, inspected
from verl_uae.data.schema import MEDIA_TOKENS
from verl_uae.data.shards import pair_of
from verl_uae.data.tar import read_samples
from verl_uae.data.tar_headers import DamagedShard
from verl_uae.errors import DataError


def check_file(
    path: Path,
    limits: ImageLimits,
    *,
    pairs: bool = False,
    refused_text: tuple[str, ...] = MEDIA_TOKENS,
    threads: int = 4,
) -> tuple[int, list[BadItem]]:
    """Check rows and pictures of a parquet or JSON file, or the samples of a tar shard; all pictures are decoded.

    Args:
        path: the file; what it is, its content says.
        limits: what the image door refuses.
        pairs: a row without a caption is bad, as for the supervised stages; samples of a shard always are.
        refused_text: see `schema.row_problem`.
        threads: decoding threads.

    Returns:
        Number of rows or samples, and the bad ones. A shard that cannot be read to its end is one more bad item.

    Raises:
        DataError: for a file that cannot be read or lacks a column.
    """
    if file_kind(path) == "tar":
        bad: list[BadItem] = []
        return sum(1 for _ in _samples(path, limits, bad)), bad
    settings = CheckSettings(image_limits=limits, threads=threads)
    door = RowDoor((str(path),), (str(path),), settings, refused_text=refused_text)
    inspect = partial(inspect_pair, door) if pairs else door.inspect
    bad = []
    total = 0
    for item, row, found in inspected(chunks_of(str(path), door.needed, door.wanted), threads, inspect):
        total = item + 1
        if isinstance(found, str):
            bad.append(door.bad(row, found))
    return total, bad


def _samples(path: Path, limits: ImageLimits, bad: list[BadItem]) -> Iterator[None]:
    count = 0
    try:
        for sample in read_samples(str(path), limits.max_bytes):
            count += 1
            pair = pair_of(sample, str(path), limits)
            try:
                problem = pair if isinstance(pair, str) else None
                if isinstance(pair, Pair):
                    pair.decode(limits)
            except DataError as error:
                problem = f"{sample.key}: {error.message}"
            if problem is not None:
                bad.append(BadItem(str(path), sample.number, problem))
            yield
    except (DamagedShard, OSError) as error:
        bad.append(BadItem(str(path), None, f"the shard is lost from sample {count} on: {error}"))
