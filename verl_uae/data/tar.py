# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Webdataset tar shards: where they come from, and their samples, read as a stream.

They are local files and http(s) URLs, and nothing that runs a command. Nothing is unpacked to disk, and no entry is
ever unpickled. webdataset opens URLs. Its own reading of a tar is not used: it takes entries of any size into memory,
and like `tarfile` it takes a damaged header in the middle of a file for the end of it. `tarfile` also takes a header at
its word: it skips over whatever size one claims, past the end of the file, keeps a long name of any length in memory,
and before Python 3.11.10 searches extended headers in quadratic time (CVE-2024-6232). Here its parser reads single
blocks of 512 bytes, and nothing costs more than the bytes that are there.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

from verl_uae.data.limits import MAX_TEXT_BYTES
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import LFS_POINTER, is_lfs_pointer
from verl_uae.paths import expand, is_url
from verl_uae.text import compression

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
_REMOTE = ("http://", "https://")
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")


class DamagedShard(ValueError):  # noqa: N818 - a condition of the data, not an error of the program
    """A shard cannot be read from here on; the message is the reason."""


def webdataset() -> Any:
    """The webdataset package in secure mode, in which it runs no ``pipe:`` URL and unpickles nothing. Raises
    `ConfigError`: it is not installed."""
    try:
        import webdataset as package
        import webdataset.tariterators
        import webdataset.utils
    except ImportError as error:
        raise ConfigError("data", f"tar shards need webdataset (pip install 'webdataset>=1.0.2'): {error}") from error
    package.utils.enforce_security = True
    return package


def open_url(url: str) -> IO[bytes]:
    """Open a local path, or an http(s) URL through webdataset (a ``curl`` process). Raises `ConfigError`: webdataset is
    not installed; `OSError`: it cannot be opened."""
    if not url.startswith(_REMOTE):
        return open(url, "rb")
    webdataset()
    from webdataset.gopen import gopen

    return gopen(url)


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Shards of brace patterns, globs and http(s) URLs, by name, each once. Raises `ConfigError`: for a URL where
    ``curl`` is missing; `DataError`: for a pattern without files, or another kind of URL."""
    webdataset()
    from braceexpand import braceexpand

    shards: set[str] = set()
    for pattern in patterns:
        # A file that is there is no pattern, whatever braces and brackets its name has.
        if not is_url(pattern) and (file := expand(pattern)).is_file():
            shards.add(str(file))
            continue
        try:
            names = list(braceexpand(str(pattern)))
        except ValueError as error:
            raise DataError(pattern, None, f"braces do not match: {error}") from error
        shards.update(chain.from_iterable(map(_files_of, names)))
    if not shards:
        raise DataError("<no shard>", None, "at least one tar shard is needed")
    return sorted(shards)


def _files_of(name: str) -> list[str]:
    if name.startswith(_REMOTE):
        if shutil.which("curl") is None:
            raise ConfigError("data.train_files", "shards behind a URL are read with curl, which is not installed")
        return [name]
    if is_url(name) or (_SCHEME.match(name) and not name.startswith("file://")) or name == "-":
        raise DataError(name, None, "refused: shards are local files or http(s) URLs")
    files = sorted(file for file in glob.glob(str(expand(name)), recursive=True) if Path(file).is_file())
    if not files:
        raise DataError(name, None, "is a folder" if expand(name).is_dir() else "no such file")
    return files


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


def read_samples(url: str, max_image_bytes: int) -> Iterator[Sample]:
    """Samples of a shard in their order, good and bad; larger pictures than so many bytes are not read.

    The entries of a sample lie together. In a local file they need not: from the first sample on that lacks its picture
    or its text, headers are read ahead to the end, and entries join the sample of their name. Raises `DamagedShard`,
    `OSError`: where the shard cannot be read any further.
    """
    with closing(open_url(url)) as stream:
        archive = Archive(stream)
        # Hidden files, such as macOS adds, are passed over.
        runs = groupby((entry for entry in archive if entry.key), key=lambda entry: entry.key)
        incomplete: set[int] = set()
        for number, (key, group) in enumerate(runs):
            run: list[Entry] = []
            sample = _sample(number, key, group, archive, max_image_bytes, run)
            suffixes = {entry.suffix for entry in run}
            if not suffixes.isdisjoint(PICTURES) and not suffixes.isdisjoint(TEXTS):
                yield sample
            elif archive.size is None:
                problem = "its entries do not lie together, as they must in a shard that is streamed"
                again = hash(key) in incomplete
                yield Sample(number, key, {}, problem, sample.endings) if again else sample
                if len(incomplete) < MAX_SCATTERED:
                    incomplete.add(hash(key))
            else:
                rest = chain(run, chain.from_iterable(entries for _, entries in runs))
                yield from _joined(number, rest, archive, max_image_bytes)
                return


def _joined(first: int, entries: Iterable[Entry], archive: Archive, max_image_bytes: int) -> Iterator[Sample]:
    """Samples from a number on, of entries that need not lie together."""
    samples: list[list[Entry]] = []
    last: dict[str, list[Entry]] = {}
    damage: DamagedShard | OSError | None = None
    before = ""
    try:
        for count, entry in enumerate(entries):
            if count > MAX_SCATTERED:
                raise DamagedShard(f"more than {MAX_SCATTERED} entries whose samples do not lie together")
            sample = last.get(entry.key, [])
            # A suffix that comes again begins another sample of that name; beside the first it is a mistake.
            again = entry.suffix in _READ and entry.suffix in (other.suffix for other in sample)
            if not sample or (again and entry.key != before):
                sample = last[entry.key] = []
                samples.append(sample)
            sample.append(entry)
            before = entry.key
    except (DamagedShard, OSError) as error:
        damage = error
    for number, run in enumerate(samples, first):
        yield _sample(number, run[0].key, run, archive, max_image_bytes)
    if damage is not None:
        raise damage


def _sample(
    number: int,
    key: str,
    entries: Iterable[Entry],
    archive: Archive,
    max_image_bytes: int,
    seen: list[Entry] | None = None,
) -> Sample:
    """A sample, its entries read as they come; ``seen`` takes them."""
    contents: dict[str, bytes] = {}
    endings: dict[str, None] = {}
    problem: str | None = None
    for entry in entries:
        suffix = entry.suffix
        if seen is not None:
            seen.append(entry)
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
    key: str = field(init=False)
    """Name of its sample, as webdataset splits it off; "" for a hidden file and one without a suffix."""
    suffix: str = field(init=False)
    """In lower case."""

    def __post_init__(self) -> None:
        folder, slash, name = self.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        object.__setattr__(self, "key", folder + slash + stem if stem and dot else "")
        object.__setattr__(self, "suffix", suffix.lower())


class Archive:
    """A tar file that is read forward from its beginning, or at any place where it is a regular file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.size: int | None = None
        self._position = 0
        with suppress(OSError, AttributeError):
            status = os.fstat(stream.fileno())
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    def __iter__(self) -> Iterator[Entry]:
        """Its regular files and links, in order. Raises `DamagedShard`, `OSError`: where it cannot be read any
        further."""
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
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError, OverflowError) as error:
                raise DamagedShard(f"cut or damaged: {error}") from error
            if info.size < 0:
                raise DamagedShard(f"damaged: an entry claims {info.size} bytes")
            offset += _BLOCK
            if info.type in (_LONG_NAME, _LONG_LINK, tarfile.XGLTYPE, *_EXTENDED):
                if info.size > MAX_HEADER_BYTES:
                    raise DamagedShard(f"damaged: a header of {info.size} bytes, limit {MAX_HEADER_BYTES}")
                body = self._take(info.size)
                if len(body) < info.size:
                    raise DamagedShard(f"cut or damaged: a header claims {info.size} bytes, {len(body)} are left")
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
            size = int(fields.get("size", 0 if info.type in _WITHOUT_CONTENT else info.size))
            sparse = info.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse" in fields
            if info.type == tarfile.GNUTYPE_SPARSE:
                offset += self._sparse_map(block)
            link = info.issym() or info.islnk()
            text = info.name if name is None else name.decode("utf-8", "surrogateescape")
            entry = Entry(text, size, offset, sparse, link)
            if self.size is not None and offset + size > self.size:
                raise DamagedShard(f"cut or damaged: an entry claims {size} bytes, {self.size - offset} are left")
            if info.isreg() or link:
                yield entry
            offset += _padded(size)
            extended, long_name = {}, None

    def read(self, entry: Entry) -> bytes:
        """The content of an entry; of the last one given, where the stream cannot go back. Raises `DamagedShard`,
        `OSError`: it is cut."""
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


def _check_kind(block: bytes) -> None:
    if is_lfs_pointer(block):
        raise DamagedShard(LFS_POINTER)
    if (compressed := compression(block)) is not None:
        raise DamagedShard(f"compressed with {compressed}: shards are plain tar files, unpack it to one first")
    if not block:
        raise DamagedShard("cut or damaged: the file is empty")


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
        if key == b"size" and not (value.isdigit() and len(value) <= 20):
            raise DamagedShard("damaged: an extended header has a size that is no number")
        if key in (b"path", b"size"):
            fields[key.decode()] = value
        elif key.startswith(b"GNU.sparse"):
            fields["GNU.sparse"] = value
        position = end
    return fields


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
