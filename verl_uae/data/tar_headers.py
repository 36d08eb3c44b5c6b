# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The entries of a tar file, read with bounds.

`tarfile` takes a header at its word: it skips over whatever size one claims, past the end of the file, keeps a long
name of any length in memory, and before Python 3.11.10 searches extended headers in quadratic time (CVE-2024-6232).
Here its parser reads single blocks of 512 bytes, and nothing costs more than the bytes that are there.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from verl_uae.files import LFS_POINTER, is_lfs_pointer

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
            known = everywhere | extended
            name = known.get("path", long_name)
            size = _claimed(known, 0 if info.type in _WITHOUT_CONTENT else info.size)
            sparse = info.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse" in known
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
    found: dict[str, bytes] = {}
    position = 0
    while position < len(body) and body[position]:
        space = body.find(b" ", position, position + 20)
        length = body[position:space] if space >= 0 else b""
        end = position + int(length) if length.isdigit() else 0
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not space < end <= len(body) or not equals or body[end - 1 : end] != b"\n":
            raise DamagedShard("damaged: an extended header is not of the form of pax")
        if key in (b"path", b"size"):
            found[key.decode()] = value
        elif key.startswith(b"GNU.sparse"):
            found["GNU.sparse"] = value
        position = end
    return found


def _claimed(known: dict[str, bytes], size: int) -> int:
    if "size" not in known:
        return size
    if not known["size"].isdigit() or len(known["size"]) > 20:
        raise DamagedShard("damaged: an extended header has a size that is no number")
    return int(known["size"])


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
