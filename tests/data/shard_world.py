# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tar shards good and bad, written with `tarfile` itself."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.data.conftest import encode, picture


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def members(first: int, count: int, *, wide: int = 3) -> list[tuple[str, bytes]]:
    """Pictures and captions of samples, every ``wide``-th of them in landscape."""
    found: list[tuple[str, bytes]] = []
    for number in range(first, first + count):
        size = (48, 24) if number % wide == 0 else (32, 32)
        found.append((f"{number:05d}.png", encode(picture(*size, number))))
        found.append((f"{number:05d}.txt", f"caption {number}".encode()))
    return found


def write_shards(folder: Path, counts: list[int]) -> str:
    """Shards of so many samples; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for shard, count in enumerate(counts):
        (folder / f"train-{shard:03d}.tar").write_bytes(tar_bytes(members(first, count)))
        first += count
    return f"{folder}/train-{{000..{len(counts) - 1:03d}}}.tar"
