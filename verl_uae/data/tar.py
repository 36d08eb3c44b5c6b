# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Samples of one webdataset tar shard, read as a stream. Nothing is unpacked to disk, and no entry is ever unpickled.

webdataset opens URLs and says how names are split. Its own reading of a tar is not used: it takes entries of any size
into memory, and like `tarfile` it takes a damaged header in the middle of a file for the end of it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from verl_uae.data.shard_urls import open_url, webdataset

PICTURES: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
TEXTS: tuple[str, ...] = ("txt", "json")
MAX_TEXT_BYTES = 2**20
_BLOCK = 2**20


class DamagedShard(ValueError):  # noqa: N818 - a condition of the data, not an error of the program
    """A shard cannot be read from here on; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The entries of a shard that share a name up to their first dot."""

    number: int
    """Zero-based place in the shard."""
    key: str
    entries: dict[str, bytes] = field(default_factory=dict)
    """Suffix in lower case -> content; pictures and texts only."""
    problem: str | None = None
    """Why the sample cannot be used."""


def read_samples(url: str, max_image_bytes: int) -> Iterator[Sample]:
    """Samples of a shard in their order, good and bad.

    Args:
        url: see `open_url`.
        max_image_bytes: larger pictures are not read.

    Raises:
        DamagedShard, OSError, tarfile.TarError: where the shard cannot be read any further.
    """
    split = webdataset().tariterators.base_plus_ext
    with closing(open_url(url)) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry) as archive:
        named = ((*split(info.name), info) for info in archive if info.isreg())
        samples = groupby((entry for entry in named if entry[0] is not None), key=lambda entry: entry[0])
        for number, (key, entries) in enumerate(samples):
            yield _sample(
                number, key, ((suffix.lower(), info) for _, suffix, info in entries), archive, max_image_bytes
            )
            # Otherwise tarfile remembers every entry.
            archive.members = []  # type: ignore[attr-defined]
        _check_end(archive)


def _sample(
    number: int,
    key: str,
    entries: Iterable[tuple[str, tarfile.TarInfo]],
    archive: tarfile.TarFile,
    max_image_bytes: int,
) -> Sample:
    contents: dict[str, bytes] = {}
    problem: str | None = None
    for suffix, info in entries:
        if suffix not in PICTURES and suffix not in TEXTS:
            continue
        limit = max_image_bytes if suffix in PICTURES else MAX_TEXT_BYTES
        if suffix in contents:
            problem = f"entry {suffix} is there twice"
        elif info.size > limit:
            problem = f"entry {suffix} has {info.size} bytes, limit {limit}"
        else:
            file = archive.extractfile(info)
            contents[suffix] = b"" if file is None else file.read()
    return Sample(number, key, contents, problem)


class _Entry(tarfile.TarInfo):
    """A header that says so when it is damaged or missing, instead of passing for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> _Entry:
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _HEADER as error:
            raise DamagedShard(f"cut or damaged: {error}") from error


_END, _HEADER = tarfile.EOFHeaderError, tarfile.HeaderError  # type: ignore[attr-defined]


def _check_end(archive: Any) -> None:
    """A block of zeros ends an archive; it is not the end if anything follows."""
    while block := archive.fileobj.read(_BLOCK):
        if block.strip(b"\0"):
            raise DamagedShard("data behind the end of the archive")
