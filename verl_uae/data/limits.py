# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the image door lets in, and what an encoded image claims to be, read from its container without decoding it.

Pillow allocates and loops before its caller can look at the picture, so the claims are checked first, on the raw bytes:
the format, the size, and the number of parts a decoder would have to walk through. The last one matters: a JPEG of
4096 x 4096 pixels with one 33-byte scan repeated costs 10 ms per repetition, hours for a file of 20 MB.

Imports nothing heavy, so that the command line can show the defaults at once.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from verl_uae.files import LFS_POINTER, is_lfs_pointer

_LARGEST_PIXEL_LIMIT = 89_478_485
"""Pillow warns of a decompression bomb above this; a limit below it makes that warning an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What the door lets in. Raises ``ValueError`` naming the field for a limit that makes no sense."""

    max_bytes: int = 20 * 2**20
    """Encoded size, bytes; checked before anything is parsed."""
    max_pixels: int = 4096**2
    """Width times height; at most 89,478,485, where Pillow itself warns of a decompression bomb."""
    min_side: int = 16
    """Shortest side, pixels."""
    max_aspect: float = 200.0
    """Longest side over shortest side; Qwen's resizing (``qwen_vl_utils.smart_resize``) raises above 200."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.min_side < 1 or self.max_aspect < 1:
            raise ValueError(f"max_bytes, min_side and max_aspect must be at least 1, got {self}")
        if not self.min_side**2 <= self.max_pixels <= _LARGEST_PIXEL_LIMIT:
            raise ValueError(f"max_pixels must lie in [min_side**2, {_LARGEST_PIXEL_LIMIT}], got {self}")


DEFAULT_LIMITS = ImageLimits()

MAX_TEXT_BYTES = 2**20
"""Largest caption or JSON entry, bytes."""

FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP")
"""Formats that are decoded. Everything else is refused by name."""

MAX_JPEG_SCANS = 64
"""Progressive encoders write about ten scans."""
MAX_JPEG_SEGMENTS = 4096
MAX_JPEG_PADDING = 65_536
"""Bytes between segments before the first scan; Pillow skips them one by one in Python."""
MAX_PNG_CHUNKS = 16_384
MAX_PNG_TEXT_CHUNKS = 32
"""Pillow expands each compressed text to at most 1 MiB."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_JPEG_START, _JPEG_END, _JPEG_SCAN = 0xD8, 0xD9, 0xDA
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Inside entropy-coded data a 0xFF is followed by 0x00 or a restart marker; a run of 0xFF is padding.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FOREIGN = {
    rb"GIF8": "GIF",
    rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+": "TIFF",
    rb"BM": "BMP",
    rb"(?s:....)ftyp(heic|heix|mif1|msf1)": "HEIC",
    rb"(?s:....)ftypavi": "AVIF",
    rb"%!PS|\xc5\xd0\xd3\xc6": "EPS",
    rb"%PDF": "PDF",
    rb"\s*<": "markup such as SVG or HTML",
}


class RefusedError(ValueError):
    """A picture that is not let in; the message is the reason. `decode_image` turns it into a `DecodeError`."""


@dataclass(frozen=True, slots=True)
class Header:
    """Format (one of ``FORMATS``) and size in pixels as claimed by the container, before any EXIF rotation."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Read the claims of an encoded image; linear in the number of its parts, never in the number of pixels. Raises
    `RefusedError`: for a foreign or broken container, an animation, or an absurd number of parts."""
    if not data:
        raise RefusedError("empty file")
    if is_lfs_pointer(data):
        raise RefusedError(LFS_POINTER)
    if data.startswith(_PNG_SIGNATURE):
        return _read_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _read_webp(data)
    for pattern, name in _FOREIGN.items():
        if re.match(pattern, data):
            raise RefusedError(f"format {name} is not accepted, only {', '.join(FORMATS)}")
    raise RefusedError(f"not an image in {', '.join(FORMATS)}")


def _read_png(data: bytes) -> Header:
    if data[12:16] != b"IHDR" or len(data) < 24:
        raise RefusedError("PNG without a header chunk")
    position, chunks, texts = 8, 0, 0
    while position + 8 <= len(data):
        kind = data[position + 4 : position + 8]
        chunks += 1
        texts += kind in _PNG_TEXT
        if kind == b"acTL":
            raise RefusedError("animated PNG")
        if chunks > MAX_PNG_CHUNKS or texts > MAX_PNG_TEXT_CHUNKS:
            raise RefusedError(f"PNG with more than {MAX_PNG_CHUNKS} chunks or {MAX_PNG_TEXT_CHUNKS} texts")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return Header("PNG", *struct.unpack_from(">II", data, 16))


def _read_jpeg(data: bytes) -> Header:
    size: tuple[int, int] | None = None
    position, segments, scans, padding = 2, 0, 0, 0
    while marker := _JPEG_MARKER.search(data, position, len(data) if scans else position + MAX_JPEG_PADDING):
        code = data[marker.end() - 1]
        if code == _JPEG_END:
            break
        segments += 1
        padding += 0 if scans else marker.start() - position
        position = marker.end()
        if code in (_JPEG_START, 0x01):  # markers without a body
            continue
        if code in _JPEG_FRAMES and size is None:
            height, width = data[position + 3 : position + 5], data[position + 5 : position + 7]
            size = int.from_bytes(width, "big"), int.from_bytes(height, "big")
        scans += code == _JPEG_SCAN
        if scans > MAX_JPEG_SCANS or segments > MAX_JPEG_SEGMENTS or padding > MAX_JPEG_PADDING:
            most = f"{MAX_JPEG_SCANS} scans, {MAX_JPEG_SEGMENTS} segments or {MAX_JPEG_PADDING} bytes of padding"
            raise RefusedError(f"JPEG with more than {most}")
        position += max(int.from_bytes(data[position : position + 2], "big"), 2)
    if size is None or not scans:
        raise RefusedError("JPEG without a frame header and a scan")
    return Header("JPEG", *size)


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if len(data) < 30:
        raise RefusedError("WebP cut short in its header")
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise RefusedError("animated WebP")
        return Header("WEBP", int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return Header("WEBP", (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise RefusedError("WebP without an image header")
