# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Samples of one webdataset tar shard, read as a stream. Nothing is unpacked to disk, and no entry is ever unpickled.

webdataset opens URLs. Its own reading of a tar is not used: it takes entries of any size into memory, and like
`tarfile` it takes a damaged header in the middle of a file for the end of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby

from verl_uae.data.limits import MAX_TEXT_BYTES
from verl_uae.data.shard_urls import open_url
from verl_uae.data.tar_headers import Archive, DamagedShard, Entry

PICTURES: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
TEXTS: tuple[str, ...] = ("txt", "json")
_READ = frozenset({*PICTURES, *TEXTS})
MAX_SCATTERED = 2**20
"""Most entries of a shard whose samples do not lie together."""
_NAMED_ENDINGS, _LONGEST_ENDING = 8, 40


@dataclass(frozen=True, slots=True)
class Sample:
    """The entries of a shard that share a name up to the first dot of its last part."""

    number: int
    """Zero-based place in the shard."""
    key: str
    entries: dict[str, bytes] = field(default_factory=dict)
    """Suffix in lower case -> content; pictures and texts only."""
    problem: str | None = None
    """Why the sample cannot be used."""
    endings: tuple[str, ...] = field(default=(), compare=False)
    """Suffixes that were found, the first few, for messages."""


@dataclass(frozen=True, slots=True)
class _Named:
    key: str
    suffix: str
    """In lower case."""
    entry: Entry


def read_samples(url: str, max_image_bytes: int) -> Iterator[Sample]:
    """Samples of a shard in their order, good and bad.

    The entries of a sample lie together. In a local file they need not: from the first sample on that lacks its picture
    or its text, headers are read ahead to the end, and entries join the sample of their name.

    Args:
        url: see `open_url`.
        max_image_bytes: larger pictures are not read.

    Raises:
        DamagedShard, OSError: where the shard cannot be read any further.
    """
    with closing(open_url(url)) as stream:
        archive = Archive(stream)
        runs = groupby(_named(archive), key=lambda named: named.key)
        incomplete: set[int] = set()
        for number, (key, group) in enumerate(runs):
            run: list[_Named] = []
            sample = _sample(number, key, _kept(group, run), archive, max_image_bytes)
            if _is_complete(run):
                yield sample
            elif archive.size is None:
                yield _scattered(sample) if hash(key) in incomplete else sample
                if len(incomplete) < MAX_SCATTERED:
                    incomplete.add(hash(key))
            else:
                yield from _joined(number, run, runs, archive, max_image_bytes)
                return


def _named(archive: Archive) -> Iterator[_Named]:
    """Entries with key and suffix, split as webdataset does; hidden files, such as macOS adds, are passed over."""
    for entry in archive:
        folder, slash, name = entry.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if stem and dot:
            yield _Named(folder + slash + stem, suffix.lower(), entry)


def _kept(group: Iterator[_Named], run: list[_Named]) -> Iterator[_Named]:
    for named in group:
        run.append(named)
        yield named


def _is_complete(run: list[_Named]) -> bool:
    suffixes = {named.suffix for named in run}
    return not suffixes.isdisjoint(PICTURES) and not suffixes.isdisjoint(TEXTS)


def _scattered(sample: Sample) -> Sample:
    problem = "its entries do not lie together, as they must in a shard that is streamed"
    return Sample(sample.number, sample.key, {}, problem, sample.endings)


def _joined(
    number: int,
    first: list[_Named],
    runs: Iterator[tuple[str, Iterator[_Named]]],
    archive: Archive,
    max_image_bytes: int,
) -> Iterator[Sample]:
    """Samples from ``first`` on, of entries that need not lie together."""
    samples: list[list[_Named]] = []
    last: dict[str, list[_Named]] = {}
    damage: DamagedShard | OSError | None = None
    count = 0
    before = ""

    def add(named: _Named) -> None:
        nonlocal before
        known = last.get(named.key)
        # A suffix that comes again begins another sample of that name; beside the first it is a mistake.
        again = known is not None and named.suffix in _READ and named.suffix in (other.suffix for other in known)
        if known is None or (again and named.key != before):
            known = last[named.key] = []
            samples.append(known)
        known.append(named)
        before = named.key

    for named in first:
        add(named)
    try:
        for _, group in runs:
            for named in group:
                count += 1
                if count > MAX_SCATTERED:
                    raise DamagedShard(f"more than {MAX_SCATTERED} entries whose samples do not lie together")
                add(named)
    except (DamagedShard, OSError) as error:
        damage = error
    for place, run in enumerate(samples, number):
        yield _sample(place, run[0].key, iter(run), archive, max_image_bytes)
    if damage is not None:
        raise damage


def _sample(number: int, key: str, group: Iterator[_Named], archive: Archive, max_image_bytes: int) -> Sample:
    contents: dict[str, bytes] = {}
    endings: dict[str, None] = {}
    problem: str | None = None
    for named in group:
        suffix, entry = named.suffix, named.entry
        if len(endings) < _NAMED_ENDINGS:
            endings[suffix[:_LONGEST_ENDING]] = None
        if suffix not in _READ:
            continue
        limit = max_image_bytes if suffix in PICTURES else MAX_TEXT_BYTES
        if suffix in contents:
            problem = f"entry {suffix} is there twice"
        elif entry.size > limit:
            problem = f"entry {suffix} has {entry.size} bytes, limit {limit}"
        elif entry.link:
            problem = f"entry {suffix} is a link without content: pack with tar --dereference --hard-dereference"
        elif entry.sparse:
            problem = f"entry {suffix} is stored as a sparse file"
        else:
            contents[suffix] = archive.read(entry)
    return Sample(number, key, contents, problem, tuple(endings))
