# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Text from outside: what can be encoded, names that a file system takes, and files as editors write them.

A Python string can hold halves of surrogate pairs: JSON may escape one (``"\\ud83d"``, an emoji cut in two), and a
file name or an argument that is not UTF-8 holds one for each foreign byte. No tokenizer, no file and no Arrow column
takes such a string.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
from typing import Any

from verl_uae.errors import ConfigError
from verl_uae.files import LFS_POINTER, is_lfs_pointer, open_regular

MAX_NAME_BYTES = 220
"""Longest file name that is made of other names. File systems take 255; the rest is for temporary names beside it."""

_HALF = re.compile("[\ud800-\udfff]")
# Line ends of every kind, and what a terminal would obey.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# What `printable` writes for a half; in a name that has no half it is plain text.
_LIKE_AN_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")
_HOLE = re.compile(rb"\0{4,}")
_FOREIGN = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


# First bytes of files that are compressed.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x04\x22\x4d\x18": "lz4",
}
_PARQUET = b"PAR1"


def text_problem(text: str) -> str | None:
    """Why a text cannot be encoded, or None."""
    half = _HALF.search(text)
    if half is None:
        return None
    return f"half of a surrogate pair (\\u{ord(half[0]):04x}) at character {half.start()}, which is no text"


def encodable(text: str) -> str:
    """The text, or where it cannot be encoded the same with escapes: ``\\xff`` for a byte, ``\\ud83d`` for a half."""
    return _HALF.sub(_escape, text)


def one_line(text: str) -> str:
    """A message on one line: `encodable`, with escapes for line ends and what else a terminal would obey."""
    return _CONTROL.sub(lambda mark: ascii(mark[0])[1:-1], encodable(text))


def printable(name: str) -> str:
    """A file name as `encodable` text; different names stay different.

    A backslash that could be taken for an escape becomes ``\\x5c``: the name of the byte 0xff and the name of the four
    characters ``\\xff`` do not print alike.
    """
    return encodable(_LIKE_AN_ESCAPE.sub(r"\\x5c", name))


def fitting_name(name: str, suffix: str = "") -> str:
    """A file name of at most `MAX_NAME_BYTES` that is printable; the same name always gives the same.

    Args:
        name: what it is made of, without the ending; a name that is too long is cut and gets a hash of the whole.
        suffix: its ending, kept.
    """
    whole = printable(name)
    room = MAX_NAME_BYTES - len(suffix.encode())
    if len(whole.encode()) <= room:
        return whole + suffix
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole.encode()[: room - 9].decode('utf-8', 'ignore')}~{digest}{suffix}"


def argument_text(key: str, text: str) -> str:
    """A text of the command line.

    Python decodes arguments by the locale. Where that is ``C``, each byte of UTF-8 arrives as a half of a surrogate
    pair; together they are the text that was typed.

    Raises:
        ConfigError: naming ``key``, for bytes that are not UTF-8.
    """
    if text_problem(text) is None:
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(key, f"is not UTF-8: {encodable(text)!r}") from error


def foreign_encoding(data: bytes) -> str | None:
    """What a text is instead of UTF-8, by its beginning, and what to do; None where it may be UTF-8."""
    for mark, name in _FOREIGN:
        if data.startswith(mark):
            return f"is {name}: save it as UTF-8"
    # Many zeros in a row are of no encoding but a hole, such as a full disk or a crash leaves.
    text = _HOLE.sub(b"", data)
    return "every other byte is zero, as in UTF-16: save it as UTF-8" if text.count(0) * 3 > len(text) else None


def compression(start: bytes) -> str | None:
    """What a file is compressed with, by its first bytes; None where it is not, or not known to be."""
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def decode_text(data: bytes) -> str:
    """The content of a text file. A byte order mark of UTF-8 is no content.

    Raises:
        ValueError: naming the encoding that was found instead of UTF-8, or the first foreign byte and its line; or it
            is a pointer of Git LFS, compressed, or a parquet file.
    """
    if is_lfs_pointer(data):
        raise ValueError(LFS_POINTER)
    if (packed := compression(data)) is not None:
        raise ValueError(f"is compressed with {packed}, or a document that is: unpack it, or save it as text")
    # Behind the mark begins a header, whose first byte is no text.
    if data.startswith(_PARQUET) and data[4:5] not in b"\t\n\r" and data[4] < 32:
        raise ValueError("is a parquet file, no text")
    foreign = foreign_encoding(data)
    if foreign is not None:
        raise ValueError(foreign)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"byte 0x{error.object[error.start]:02x} in line {line} is not UTF-8 but of a code page such as "
            "Windows-1252: save it as UTF-8"
        ) from error


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file, as `decode_text`.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is not UTF-8.
    """
    with open_regular(path) as file:
        return decode_text(file.read())


def parse_json(text: str) -> Any:
    """The value that a JSON text holds. Of a key that an object has twice, readers differ in which they take.

    Raises:
        ValueError: it is not JSON, an object has a key twice, or it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_number(value: object) -> bool:
    """Whether a value of a JSON text is a finite number, and one that a float can hold; ``true`` is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs, as ``object_pairs_hook`` of `json.loads`.

    Raises:
        ValueError: a key is there twice.
    """
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the key {encodable(name[:80])!r} is there twice")
        content[name] = value
    return content


def _escape(half: re.Match[str]) -> str:
    code = ord(half[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
