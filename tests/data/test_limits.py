# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image

from verl_uae.data.limits import Header, RefusedError, read_header


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("PNG", {"interlace": 1}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "restart_marker_rows": 1}),
        ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xda\xff\xc0" * 500, "comment": b"\xff\xd9" * 10}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM"}),
    ],
)
@pytest.mark.parametrize("size", [(33, 17), (1000, 40), (40, 1000)])
def test_header_agrees_with_pillow(
    format: str, options: dict, size: tuple[int, int], make_picture: Callable, make_bytes: Callable
) -> None:
    data = make_bytes(make_picture(*size), format, **options)
    with Image.open(io.BytesIO(data)) as img:
        assert read_header(data) == Header(img.format, *img.size)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypavif", "AVIF"),
        (b"  <svg>", "markup"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\xd8\xff\xe0\0\x02", "without a frame header and a scan"),
        (b"RIFF\0\0\0\0WEBP", "cut short"),
        (b"RIFF\0\0\0\0WEBP" + bytes(30), "without an image header"),
        (b"hello", "not an image"),
    ],
)
def test_reason_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        read_header(data)
