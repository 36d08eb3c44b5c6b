# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from verl_uae.data.limits import ImageLimits
from verl_uae.reward.custom import to_pil
from verl_uae.reward.remote.wire import (
    ProtocolError,
    claimed_size,
    decode_picture,
    dumps,
    encode_picture,
    loads,
    plain,
    to_levels,
)

LIMITS = ImageLimits(max_bytes=2**16, max_pixels=64 * 64, min_side=1)


def base64_of(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def png(*sizes: tuple[int, int], depth: int = 8, color: int = 2, pixels: bytes = b"") -> str:
    """A PNG file by hand, with a header for each of ``sizes``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    heads = [struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0) for width, height in sizes]
    parts = (*(chunk(b"IHDR", head) for head in heads), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def test_pictures_come_back_exactly() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(decode_picture(encode_picture(levels), LIMITS), levels)
    assert np.array_equal(
        decode_picture(png((5, 7), pixels=b"".join(b"\0" + row.tobytes() for row in levels)), LIMITS), levels
    )


def test_levels_are_those_of_a_custom_reward_and_every_level_survives() -> None:
    images = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 1.002 - 0.001
    assert np.array_equal(to_levels(images), np.stack([np.asarray(to_pil(image)) for image in images]))
    every = torch.arange(256, dtype=torch.float32).expand(1, 3, 1, 256) / 255.0
    assert np.array_equal(to_levels(every)[0, 0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (5, "must be base64 text, got int"),
        ("no base64!", "not base64"),
        ("é", "not base64"),
        ("", "empty file"),
        (base64.b64encode(b"GIF89a" + bytes(20)).decode(), "GIF"),
        (base64_of(Image.new("RGB", (8, 8)), "JPEG"), "not a PNG file of 8-bit RGB"),
        (base64_of(Image.new("RGBA", (8, 8))), "not a PNG file of 8-bit RGB"),
        (base64_of(Image.new("L", (8, 8))), "not a PNG file of 8-bit RGB"),
        (base64_of(Image.new("P", (8, 8))), "not a PNG file of 8-bit RGB"),
        (png((8, 8), depth=16), "not a PNG file of 8-bit RGB"),
        (png((50_000, 50_000)), "50000 x 50000 pixels, limit 4096"),
        (png((8, 8), pixels=b"\0" * 10), "truncated"),
        (png((8, 8), (16, 4), pixels=bytes(49 * 4)), "its size is not that of its header"),
        (base64_of(Image.new("RGB", (8, 8)))[:60], "base64|truncated|broken|ends|chunk"),
        (base64.b64encode(bytes(2**16 + 1)).decode(), "65537 bytes, limit 65536"),
    ],
)  # fmt: skip
def test_other_pictures_are_refused(text: object, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode_picture(text, LIMITS)


def test_the_claimed_size_is_read_from_the_head_alone() -> None:
    assert claimed_size(png((50_000, 7))) == (50_000, 7)
    assert claimed_size(base64_of(Image.new("RGB", (9, 8)))[:36] + "no base64!") == (9, 8)
    assert [claimed_size(text) for text in (None, 5, {}, [], "", "no base64!", "é" * 40, "AAAA")] == [(0, 0)] * 8


def test_json_is_strict() -> None:
    assert loads(dumps({"a": [1, 2.5, None, "\ud83c\udf00é", "\ud800"]})) == {
        "a": [1, 2.5, None, "\U0001f300é", "\ud800"]
    }
    for text in (
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        '{"a": 1, "a": 2}',
        "",
        "{",
        "1 2",
        "[" * 100_000,
        "1" * 5000,
    ):
        with pytest.raises(ProtocolError, match="not JSON"):
            loads(text.encode())
    with pytest.raises(ProtocolError, match="not JSON"):
        loads(b'"\xff"')
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"a": float("nan")})


def test_plain() -> None:
    row = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": (1, "x", None, True),
        4: {"d": np.int64(3), "e": np.bool_(False)},
    }
    assert plain(row, "row") == {"a": 0.5, "b": [0, 1], "c": [1, "x", None, True], "4": {"d": 3, "e": False}}
    for value, name in (
        ({"a": [0, np.nan]}, r"row\.a\[1\] is nan"),
        (b"x", "row is a bytes"),
        ([{1}], r"row\[0\] is a set"),
    ):
        with pytest.raises(ProtocolError, match=name):
            plain(value, "row")
