# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures good and hostile, built here so that no test needs a file from elsewhere."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image


def picture(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth random RGB picture: compresses like a photograph, differs for every seed."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def encode(img: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    img.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, pixels: bytes | None = None) -> bytes:
    """A PNG with right checksums, whatever its header claims."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    raw = b"\0" * (17 * 16) if pixels is None else pixels
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + png_chunk(b"IDAT", zlib.compress(raw))
        + png_chunk(b"IEND", b"")
    )


def webp_canvas(width: int, height: int, flags: int = 0) -> bytes:
    body = struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(picture(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_with_scans(count: int) -> bytes:
    data = encode(picture(512, 512), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * count + b"\xff\xd9"


def crafted() -> Iterator[tuple[str, bytes]]:
    """Inputs that must be refused, each built to hurt in its own way."""
    bomb = zlib.compress(bytes(100 * 2**20), 9)
    megabyte = zlib.compress(bytes(2**20 - 1), 9)
    for side in (4097, 12_000, 30_000, 2**31 - 1, 2**31, 2**32 - 1):
        yield f"png {side}", png(side, side)
    for size in ((0, 0), (0, 64), (64, 0), (1, 1), (15, 64), (16, 10_000)):
        yield f"png {size}", png(*size)
    yield "png text bomb", png(16, 16, png_chunk(b"zTXt", b"k\0\0" + bomb))
    yield "png text swarm", png(16, 16, *[png_chunk(b"zTXt", b"k\0\0" + megabyte)] * 1000)
    yield "png international text bomb", png(16, 16, png_chunk(b"iTXt", b"k\0\1\0\0\0" + bomb))
    yield "png chunk swarm", png(16, 16, *[png_chunk(b"abCd", b"")] * 200_000)
    yield "png animation", png(16, 16, png_chunk(b"acTL", struct.pack(">II", 2, 0)))
    yield "png without header", b"\x89PNG\r\n\x1a\n" + png_chunk(b"IEND", b"")
    yield "png without pixels", png(16, 16, pixels=b"")
    yield "png bad checksum", png(16, 16).replace(png_chunk(b"IEND", b"")[:4], b"\0\0\0\1")
    yield "jpeg largest", jpeg_claiming(65_535, 65_535)
    yield "jpeg no height", jpeg_claiming(96, 0)
    yield "jpeg scans", jpeg_with_scans(2_000)
    yield "jpeg padding", b"\xff\xd8" + b"\xff" * 5_000_000 + encode(picture(), "JPEG")[2:]
    scan = (whole := encode(picture(), "JPEG")).index(b"\xff\xda")
    yield "jpeg late padding", whole[:scan] + b"\xff" * 5_000_000 + whole[scan:]
    yield "jpeg segments", b"\xff\xd8" + b"\xff\xe1\0\2" * 500_000 + encode(picture(), "JPEG")[2:]
    yield "jpeg start only", b"\xff\xd8\xff"
    yield "webp largest", webp_canvas(2**24, 2**24)
    yield "webp wide", webp_canvas(16_383, 16_383)
    yield "webp no frame", webp_canvas(64, 64)
    yield "webp animation flag", webp_canvas(64, 64, flags=2)
    yield "webp animated", encode(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)])
    yield "png animated", encode(picture(), "PNG", save_all=True, append_images=[picture(seed=1)])
    for format in ("GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "PDF", "EPS"):
        yield format, encode(picture(), format)
    yield "eps code", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n{} loop\n"
    yield "svg", b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><svg>&a;</svg>'
    yield "html", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "text", b"# not a picture\n"
    yield "empty", b""
    yield "one byte", b"\x89"
    yield "nothing but zeros", bytes(10_000)
    yield "too many bytes", encode(picture()) + bytes(21 * 2**20)


def damaged(count: int) -> Iterator[tuple[str, bytes]]:
    """Truncations and flips of one to three bits, in six formats, over and over."""
    rng = random.Random(0)
    formats = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True})]
    formats += [("GIF", {}), ("TIFF", {})]
    originals = [(format, encode(picture(), format, **options)) for format, options in formats]
    for index in range(count):
        format, original = originals[index % len(originals)]
        if index // len(originals) % 2:
            yield f"{format} cut", original[: rng.randrange(len(original))]
        else:
            flipped = bytearray(original)
            for _ in range(rng.randint(1, 3)):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            yield f"{format} flipped", bytes(flipped)


@pytest.fixture(scope="session")
def hostile_inputs() -> list[tuple[str, bytes, bool]]:
    """2,000 tuples (name, bytes, whether refusing is the only right answer)."""
    must_refuse = [(name, data, True) for name, data in crafted()]
    return must_refuse + [(name, data, False) for name, data in damaged(2_000 - len(must_refuse))]


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture(scope="session")
def make_bytes() -> Callable[..., bytes]:
    return encode
