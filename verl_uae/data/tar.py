# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Samples of one webdataset tar shard, read as a stream. Nothing is unpacked to disk, and no entry is ever unpickled.

webdataset opens URLs. Its own reading of a tar is not used: it takes entries of any size into memory, and like
`tarfile` it takes a damaged header in the middle of a file for the end of it. `tarfile` also takes a header at its
word: it skips over whatever size one claims, past the end of the file, keeps a long name of any length in memory, and
before Python 3.11.10 searches extended headers in quadratic time (CVE-2024-6232). Here its parser reads single blocks
of 512 bytes, and nothing costs more than the bytes that are there.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO

from verl_uae.data.limits import MAX_TEXT_BYTES
from verl_uae.data.shard_urls import open_url
from verl_uae.files import LFS_POINTER, is_lfs_pointer

PICTURES: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
TEXTS: tuple[str, ...] = ("txt", "json")
_READ = frozenset({*PICTURES, *TEXTS})
MAX_SCATTERED = 2**20
"""Most entries of a shard whose samples do not lie together."""
_NAMED_ENDINGS, _LONGEST_ENDING = 8, 40
MAX_HEADER_BYTES = 2**20
"""Largest long name or extended header."""
MAX_PADDING_BYTES = 64 * 2**20
"""Most zeros behind the end of an archive; tar itself pads to 10 KiB."""
_BLOCK = 512
_CHUNK = 2**20
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# Links, devices, folders and pipes have no content, whatever their size says.
_WITHOUT_CONTENT = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
# A sparse file's header has a flag here when blocks with more of its map follow, and each of those there.
_MORE_IN_HEADER, _MORE_IN_BLOCK = 482, 504
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


class DamagedShard(ValueError):  # noqa: N818 - a condition of the data, not an error of the program
    """A shard cannot be read from here on; the message is the reason."""


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
        sample = last.get(named.key)
        # A suffix that comes again begins another sample of that name; beside the first it is a mistake.
        again = sample is not None and named.suffix in _READ and named.suffix in (other.suffix for other in sample)
        if sample is None or (again and named.key != before):
            sample = last[named.key] = []
            samples.append(sample)
        sample.append(named)
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


@dataclass(frozen=True, slots=True)
class Entry:
    """One regular file of an archive, or a link to one."""

    name: str
    """Halves of surrogate pairs stand for bytes that are not UTF-8."""
    size: int
    """Bytes of its content."""
    offset: int
    """Where its content begins."""
    sparse: bool = False
    """Its content is stored with holes, and is not what `Archive.read` gives."""
    link: bool = False
    """It has no content: it points to another file, within the archive or outside."""


class Archive:
    """A tar file that is read forward, or at any place where it is a regular file.

    Args:
        stream: at its beginning.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.size = _regular_size(stream)
        self._position = 0

    def __iter__(self) -> Iterator[Entry]:
        """Its regular files and links, in order.

        Raises:
            DamagedShard, OSError: where it cannot be read any further.
        """
        offset, everywhere, extended, long_name = 0, dict[str, bytes](), dict[str, bytes](), None
        while True:
            self._go_to(offset)
            block = self._take(_BLOCK)
            if offset == 0:
                _check_kind(block)
            if len(block) < _BLOCK:
                raise DamagedShard("cut or damaged: the archive has no end")
            if not block.strip(b"\0"):
                return self._check_end()
            info = _header(block)
            offset += _BLOCK
            if info.type in (_LONG_NAME, _LONG_LINK, tarfile.XGLTYPE, *_EXTENDED):
                body = self._body(info)
                if info.type == _LONG_NAME:
                    long_name = body.split(b"\0", 1)[0]
                elif info.type == tarfile.XGLTYPE:
                    everywhere |= _records(body)
                elif info.type in _EXTENDED:
                    extended = _records(body)
                offset += _padded(info.size)
                continue
            fields = everywhere | extended
            name = fields.get("path", long_name)
            size = _claimed(fields, 0 if info.type in _WITHOUT_CONTENT else info.size)
            sparse = info.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse" in fields
            if info.type == tarfile.GNUTYPE_SPARSE:
                offset += self._sparse_map(block)
            link = info.issym() or info.islnk()
            entry = Entry(info.name if name is None else _text(name), size, offset, sparse, link)
            if self.size is not None and offset + size > self.size:
                raise DamagedShard(f"cut or damaged: an entry claims {size} bytes, {self.size - offset} are left")
            if info.isreg() or link:
                yield entry
            offset += _padded(size)
            extended, long_name = {}, None

    def read(self, entry: Entry) -> bytes:
        """The content of an entry; of the last one given, where the stream cannot go back.

        Raises:
            DamagedShard, OSError: it is cut.
        """
        self._go_to(entry.offset)
        blocks: list[bytes] = []
        missing = entry.size
        # In pieces: memory follows what is there, not what is claimed.
        while missing and (block := self._take(min(_CHUNK, missing))):
            blocks.append(block)
            missing -= len(block)
        if missing:
            raise DamagedShard(f"cut or damaged: an entry claims {entry.size} bytes, {missing} are missing")
        return b"".join(blocks)

    def _take(self, count: int) -> bytes:
        data = self.stream.read(count)
        self._position += len(data)
        return data

    def _go_to(self, offset: int) -> None:
        if self.size is not None:
            self.stream.seek(offset)
            self._position = offset
        while self._position < offset:
            if not self._take(min(_CHUNK, offset - self._position)):
                raise DamagedShard(f"cut or damaged: {offset - self._position} bytes are missing")

    def _body(self, info: tarfile.TarInfo) -> bytes:
        if info.size > MAX_HEADER_BYTES:
            raise DamagedShard(f"damaged: a header of {info.size} bytes, limit {MAX_HEADER_BYTES}")
        body = self._take(info.size)
        if len(body) < info.size:
            raise DamagedShard(f"cut or damaged: a header claims {info.size} bytes, {len(body)} are left")
        return body

    def _sparse_map(self, header: bytes) -> int:
        """Bytes of the blocks that go on with the map of a sparse file."""
        count, more = 0, header[_MORE_IN_HEADER]
        while more:
            block = self._take(_BLOCK)
            if len(block) < _BLOCK:
                raise DamagedShard("cut or damaged: the map of a sparse file is cut")
            count, more = count + _BLOCK, block[_MORE_IN_BLOCK]
        return count

    def _check_end(self) -> None:
        """A block of zeros ends an archive; it is not the end if anything follows."""
        seen = 0
        while block := self._take(_CHUNK):
            if block.strip(b"\0"):
                raise DamagedShard("data behind the end of the archive")
            seen += len(block)
            if seen > MAX_PADDING_BYTES:
                raise DamagedShard(f"more than {MAX_PADDING_BYTES} zeros behind the end of the archive")


def _regular_size(stream: IO[bytes]) -> int | None:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def compression(start: bytes) -> str | None:
    """What a file is compressed with, by its first bytes; None where it is not, or not known to be."""
    return next((name for magic, name in _COMPRESSED if start.startswith(magic)), None)


def _check_kind(block: bytes) -> None:
    if is_lfs_pointer(block):
        raise DamagedShard(LFS_POINTER)
    compressed = compression(block)
    if compressed is not None:
        raise DamagedShard(f"compressed with {compressed}: shards are plain tar files, unpack it to one first")
    if not block:
        raise DamagedShard("cut or damaged: the file is empty")


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        raise DamagedShard(f"cut or damaged: {error}") from error
    if info.size < 0:
        raise DamagedShard(f"damaged: an entry claims {info.size} bytes")
    return info


def _records(body: bytes) -> dict[str, bytes]:
    """What an extended header says of path, size and holes; its form is that of POSIX pax, "length key=value"."""
    fields: dict[str, bytes] = {}
    position = 0
    while position < len(body) and body[position]:
        space = body.find(b" ", position, position + 20)
        length = body[position:space] if space >= 0 else b""
        end = position + int(length) if length.isdigit() else 0
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not space < end <= len(body) or not equals or body[end - 1 : end] != b"\n":
            raise DamagedShard("damaged: an extended header is not of the form of pax")
        if key in (b"path", b"size"):
            fields[key.decode()] = value
        elif key.startswith(b"GNU.sparse"):
            fields["GNU.sparse"] = value
        position = end
    return fields


def _claimed(fields: dict[str, bytes], size: int) -> int:
    if "size" not in fields:
        return size
    if not fields["size"].isdigit() or len(fields["size"]) > 20:
        raise DamagedShard("damaged: an extended header has a size that is no number")
    return int(fields["size"])


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
