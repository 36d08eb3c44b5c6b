# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Strict JSON, and pictures as base64 PNG: what passes between a run and a reward server.

Both ends read what somebody else wrote, so everything that JSON libraries let through by kindness is refused here:
NaN and infinity, numbers that overflow, a name twice in one object, text that is not UTF-8.

Shape legend: H height, W width, 3 colour channels.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verl_uae.data.images import check_header, decode_image
from verl_uae.data.limits import ImageLimits
from verl_uae.errors import DecodeError
from verl_uae.text import unique_keys

#: zlib level and strategy (Z_RLE) of pictures on the wire: behind PNG's filters, searching for more only costs time.
PNG_LEVEL, PNG_STRATEGY = 1, 3

#: Size, then bit depth and colour type at their places in a PNG file; those of 8-bit RGB (PNG specification, 11.2.2).
_IHDR_SIZE, _IHDR_FORMAT, _EIGHT_BIT_RGB = struct.Struct(">16xII"), slice(24, 26), bytes((8, 2))

#: Characters of base64 that hold the start of the file up to there.
_HEAD = 36


class ProtocolError(ValueError):
    """A message that breaks the protocol; the text says where."""


def dumps(value: object) -> bytes:
    """JSON as bytes.

    Raises:
        ValueError: for a number that is not finite.
        TypeError: for what JSON does not know.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes | bytearray) -> Any:
    """Parse JSON strictly.

    Raises:
        ProtocolError: for anything but one JSON value in UTF-8 with finite numbers and unique names.
    """
    try:
        text = data.decode("utf-8")
        return json.loads(text, parse_constant=_constant, parse_float=_float, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {str(error)[:120] or type(error).__name__}") from error


def to_levels(images_B3HW: Tensor) -> np.ndarray:
    """Pictures in [0, 1] as 8-bit levels (B, H, W, 3), rounded to the nearest."""
    levels = images_B3HW.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def encode_picture(levels_HW3: np.ndarray) -> str:
    """8-bit RGB levels as base64 of a PNG file; lossless."""
    file = io.BytesIO()
    Image.fromarray(levels_HW3, mode="RGB").save(
        file, format="PNG", compress_level=PNG_LEVEL, compress_type=PNG_STRATEGY
    )
    return base64.b64encode(file.getbuffer()).decode("ascii")


def claimed_size(text: object) -> tuple[int, int]:
    """(width, height) as the head of a picture on the wire says; (0, 0) for what :func:`decode_picture` refuses."""
    try:
        width, height = _IHDR_SIZE.unpack_from(base64.b64decode(text[:_HEAD], validate=True))  # type: ignore[index]
    except (ValueError, TypeError, KeyError, struct.error):
        return 0, 0
    return width, height


def decode_picture(text: object, limits: ImageLimits) -> np.ndarray:
    """Inverse of :func:`encode_picture`, for a text from outside.

    Args:
        text: base64 of a PNG file.
        limits: what to refuse before anything is decoded.

    Returns:
        Levels (H, W, 3), uint8.

    Raises:
        ProtocolError: for anything but an 8-bit RGB picture within the limits.
    """
    if not isinstance(text, str):
        raise ProtocolError(f"must be base64 text, got {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"not base64: {error}") from error
    try:
        header = check_header(data, limits=limits)
        if header.format != "PNG" or data[_IHDR_FORMAT] != _EIGHT_BIT_RGB:
            raise ProtocolError("not a PNG file of 8-bit RGB")
        levels_HW3 = np.asarray(decode_image(data, limits=limits))
        if levels_HW3.shape[:2] != (header.height, header.width):
            raise ProtocolError("its size is not that of its header")
        return levels_HW3
    except DecodeError as error:
        raise ProtocolError(error.message) from error


def plain(value: object, name: str) -> Any:
    """A value of a data row as what JSON knows; NumPy numbers and arrays become Python's.

    Args:
        value: the value.
        name: what to call it in an error.

    Raises:
        ProtocolError: for a number that is not finite, or anything else that JSON cannot carry.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ProtocolError(f"{name} is {value}")
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(inner, f"{name}[{index}]") for index, inner in enumerate(value)]
    raise ProtocolError(f"{name} is a {type(value).__name__}, which JSON cannot carry")


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number {text[:20]} is too large")
    return number
