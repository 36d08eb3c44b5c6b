# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The one door through which pictures enter and leave.

Every picture of a run, from a folder, a parquet row or a benchmark, is decoded by `decode_image`. What comes out is an
in-memory RGB picture without metadata; what cannot be decoded within the limits is a `DecodeError` with a reason.

Does not protect against: a flipped bit that still decodes (only a digest of the file finds it), a defect in Pillow's
C decoders (decode untrusted collections in a process with a memory limit), and unwanted content.

Shape legend: B pictures, 3 colour channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from verl_uae.data.limits import DEFAULT_LIMITS, FORMATS, Header, ImageLimits, RefusedError, read_header
from verl_uae.errors import DataError, DecodeError
from verl_uae.files import open_regular
from verl_uae.pages import SHARP_SIDE
from verl_uae.paths import expand, is_url

ImageSource = bytes | str | os.PathLike[str] | Image.Image | Mapping[str, object]

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_LONGEST_REASON = 300
"""Characters; a reason may quote what it was given."""
_MODES_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def decode_image(
    raw: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    path: str | Path | None = None,
    row: int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Decode one picture fully, upright, in RGB: (W, H) pixels without ``info``, not tied to a file.

    EXIF orientation is applied. Transparency is flattened on white, since a viewer of the file would mostly see it so.
    16-bit gray is scaled to 8 bits; embedded colour profiles are dropped, not applied. Metadata does not survive.

    Args:
        raw: encoded bytes, a path, a picture, or a parquet cell ``{"bytes": .., "path": ..}`` (bytes win) or
            ``{"image": picture}``.
        limits: what to refuse.
        path, row: the file and zero-based row to name in an error; default: the picture's own path.
        root: folder that a path must lie in after resolving symlinks; relative paths start there. ``None``: any path.

    Raises `DecodeError`: for every failure, naming the picture and the reason.
    """
    with _refusals_named(path or _name(raw), row):
        picture = raw.get("image") if isinstance(raw, Mapping) else raw
        if isinstance(picture, Image.Image):
            return _finish(picture, limits)
        data = _read_source(raw, limits, root)
        header = _checked_header(data, limits)
        try:
            img = Image.open(io.BytesIO(data), formats=[header.format])
        except UnidentifiedImageError as error:
            # Pillow's own message holds a memory address, which would differ from run to run.
            raise RefusedError(f"damaged {header.format} header") from error
        with img:
            return _finish(img, limits)


def encoded_bytes(
    raw: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    path: str | Path | None = None,
    row: int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> bytes:
    """The encoded form of a source that has one, of at most ``limits.max_bytes``; arguments as for `decode_image`.
    Raises `DecodeError`: for a file that is missing, not regular, too large or outside ``root``."""
    with _refusals_named(path or _name(raw), row):
        return _read_source(raw, limits, root)


def check_header(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> Header:
    """Check what encoded bytes claim to be against the limits, without decoding. Raises `DecodeError`: for claims
    beyond the limits."""
    with _refusals_named(_name(data), None):
        return _checked_header(data, limits)


def upright_size(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(W, H) of what `decode_image` would give, by the claims of encoded bytes and their EXIF orientation.

    Nothing is decoded. The orientation of a PNG that has it after its pixels is not seen. Raises `DecodeError`: for
    claims beyond the limits.
    """
    with _refusals_named(_name(data), None):
        header = _checked_header(data, limits)
        with Image.open(io.BytesIO(data), formats=[header.format]) as img:
            # Pillow decodes a PNG to look for EXIF data behind its pixels.
            at_hand = header.format != "PNG" or "exif" in img.info
            orientation = img.getexif().get(_EXIF_ORIENTATION, 1) if at_hand else 1
        return (header.height, header.width) if orientation in _SIDEWAYS else (header.width, header.height)


def rewrite_reason(data: bytes) -> str | None:
    """Why a plain ``Image.open(..).convert("RGB")`` would show bytes that `decode_image` accepts differently, or None.

    None also means the format is PNG or JPEG, which every viewer of a parquet file understands.
    """
    header = read_header(data)
    if header.format == "WEBP":
        return "format WEBP"
    with Image.open(io.BytesIO(data), formats=[header.format]) as img:
        if _has_transparency(img):
            return "transparency"
        if _is_deep_gray(img):
            return "16-bit gray"
        return "EXIF orientation" if img.getexif().get(_EXIF_ORIENTATION, 1) in _UPRIGHT else None


def rgb(img: Image.Image) -> Image.Image:
    """An open picture in RGB, its pixels read. Raises `DecodeError`: whatever Pillow raises on a damaged file."""
    with _refusals_named(_name(img), None):
        return img.convert("RGB")


def image_digest(img: Image.Image) -> str:
    """SHA-256, in hex, of the size and the RGB bytes: equal exactly for equal pictures, however they were encoded.
    Raises `ValueError`: for a picture that is not RGB."""
    if img.mode != "RGB":
        raise ValueError(f"image_digest takes an RGB picture, got mode {img.mode}")
    return hashlib.sha256(f"{img.width}x{img.height}:".encode() + img.tobytes()).hexdigest()


def source_image(messages: Sequence[Mapping[str, Any]]) -> Image.Image:
    """The source picture of a prompt: its first image. Raises `DataError`: if the prompt has none."""
    for image in prompt_images(messages):
        return image
    raise DataError("prompt", None, "has no image; UAE needs one source picture per row")


def prompt_images(messages: Sequence[Mapping[str, Any]]) -> Iterator[Image.Image]:
    """All pictures of a prompt, in order."""
    for message in messages:
        content = message.get("content") or []
        for item in [] if isinstance(content, str) else content:
            if isinstance(item, Mapping) and isinstance(item.get("image"), Image.Image):
                yield item["image"]


def source_digest(messages: Sequence[Mapping[str, Any]], extra_info: Mapping[str, Any]) -> str:
    """`image_digest` of a prompt's source picture: what the data set says, and of the pixels where it says nothing.
    Raises `DataError`: the prompt has no picture, or one that is damaged."""
    known = extra_info.get("sha256")
    return str(known) if known else image_digest(rgb(source_image(messages)))


def to_tensor(imgs: Sequence[Image.Image], size: int | tuple[int, int]) -> Tensor:
    """Bring RGB pictures, at least one, to one size, the side of a square or (H, W): scale to cover, then cut the
    centre.

    The largest centred box of the target's aspect ratio is resampled to the target in one step (bicubic, anti-aliased),
    so nothing is stretched and at most one side is cut. A picture that already has the size is not resampled. Returns
    (B, 3, H, W), float32, in [0, 1]. Raises `ValueError`: for no picture, or one that is not RGB.
    """
    if not imgs or any(img.mode != "RGB" for img in imgs):
        raise ValueError(f"to_tensor takes at least one RGB picture, got modes {[img.mode for img in imgs]}")
    height, width = (size, size) if isinstance(size, int) else size
    target = (width, height)
    fitted = [img if img.size == target else ImageOps.fit(img, target, Image.Resampling.BICUBIC) for img in imgs]
    pixels_BHW3 = torch.from_numpy(np.stack([np.asarray(img) for img in fitted]))
    return pixels_BHW3.permute(0, 3, 1, 2).contiguous().float() / 255.0


def encode_jpeg(image_3HW: Tensor, quality: int = 90) -> bytes:
    """A picture in [0, 1] as JPEG bytes."""
    return _encoded(image_3HW, "JPEG", quality=quality, subsampling=0)


def encode_png(image_3HW: Tensor) -> bytes:
    """A picture in [0, 1] as PNG bytes: nothing is lost but what 8 bits do not hold."""
    return _encoded(image_3HW, "PNG", compress_level=1)


def encode_shown(image_3HW: Tensor) -> bytes:
    """A picture in [0, 1] for a page: PNG bytes of a small one, JPEG bytes of a large one."""
    return encode_png(image_3HW) if max(image_3HW.shape[1:]) <= SHARP_SIDE else encode_jpeg(image_3HW)


def _encoded(image_3HW: Tensor, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    to_pil(image_3HW).save(buffer, format, **options)
    return buffer.getvalue()


def to_pil(image_3HW: Tensor) -> Image.Image:
    """A picture in [0, 1] as 8-bit RGB, rounded to the nearest level."""
    levels_HW3 = image_3HW.detach().float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(levels_HW3.cpu().numpy()))


@contextmanager
def _refusals_named(path: str | Path, row: int | None) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise DecodeError(path, row, str(error)) from error
    except Exception as error:
        # Fault boundary: the bytes are untrusted, and whatever a decoder raises on them means one bad picture.
        raise DecodeError(path, row, f"{type(error).__name__}: {error}"[:_LONGEST_REASON]) from error


def _read_source(raw: ImageSource, limits: ImageLimits, root: str | os.PathLike[str] | None) -> bytes:
    if isinstance(raw, Mapping):
        content, place = raw.get("bytes"), raw.get("path")
        if isinstance(content, str):
            raise RefusedError("bytes are text; in JSON a picture is named by its path")
        if content is None and place is None:
            fields = ", ".join(str(key) for key, value in raw.items() if value is not None) or "nothing"
            raise RefusedError(f"a picture is given as bytes or path; this one as {fields}")
        raw = content if content is not None else place  # type: ignore[assignment]
    if isinstance(raw, bytes | bytearray | memoryview):
        _check_bytes(len(raw), limits)
        return bytes(raw)
    if not isinstance(raw, str | os.PathLike):
        raise RefusedError(f"neither bytes nor a path but {type(raw).__name__}")
    text = os.fspath(raw)
    if is_url(text) or text.startswith("data:"):
        raise RefusedError("is a URL; pictures are read from files: download it")
    path = expand(text) if text.startswith("file://") else Path(raw)
    if root is not None:
        base = Path(root).resolve()
        path = (base / path).resolve()
        if not path.is_relative_to(base):
            raise RefusedError(f"path leaves its folder {base}")
    with open_regular(path) as file:
        _check_bytes(os.fstat(file.fileno()).st_size, limits)
        data = file.read(limits.max_bytes + 1)
    _check_bytes(len(data), limits)
    return data


def _checked_header(data: bytes, limits: ImageLimits) -> Header:
    _check_bytes(len(data), limits)
    header = read_header(data)
    _check_size(header.width, header.height, limits)
    return header


def _finish(img: Image.Image, limits: ImageLimits) -> Image.Image:
    # MPO is what phones write: a JPEG followed by further ones, of which only the first is decoded.
    if img.format not in (None, *FORMATS, "MPO"):
        raise RefusedError(f"format {img.format} is not accepted, only {', '.join(FORMATS)}")
    if img.format != "MPO" and getattr(img, "n_frames", 1) > 1:
        raise RefusedError("animated picture")
    _check_size(*img.size, limits)
    img.load()
    turn = _UPRIGHT.get(img.getexif().get(_EXIF_ORIENTATION, 1))
    rgb = _to_rgb(img if turn is None else img.transpose(turn))
    rgb.info = {}
    return rgb


def _to_rgb(img: Image.Image) -> Image.Image:
    """A new RGB picture, never the argument itself."""
    if _is_deep_gray(img):
        level = (np.asarray(img).astype(np.int64).clip(0, 65_535) + 128) // 257
        return Image.fromarray(level.astype(np.uint8)).convert("RGB")
    if not _has_transparency(img):
        return img.convert("RGB")
    rgba = img.convert("RGBA")
    white = Image.new("RGB", img.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _has_transparency(img: Image.Image) -> bool:
    # A transparent level of 16-bit gray is not counted: Pillow has no mode that could carry it.
    return not _is_deep_gray(img) and (img.mode in _MODES_WITH_ALPHA or "transparency" in img.info)


def _is_deep_gray(img: Image.Image) -> bool:
    return img.mode == "I" or img.mode.startswith("I;16")


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count == 0:
        raise RefusedError("empty file")
    if count > limits.max_bytes:
        raise RefusedError(f"{count} bytes, limit {limits.max_bytes}")


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if min(width, height) < limits.min_side:
        raise RefusedError(f"{width} x {height} pixels, shortest side must be at least {limits.min_side}")
    if width * height > limits.max_pixels:
        raise RefusedError(f"{width} x {height} pixels, limit {limits.max_pixels}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise RefusedError(f"{width} x {height} pixels, aspect ratio limit {limits.max_aspect:g}")


def _name(raw: ImageSource) -> str:
    """What to call a source in an error: its path, or its kind; never more than 200 characters."""
    if isinstance(raw, Mapping):
        raw = raw.get("path") or "<image cell>"  # type: ignore[assignment]
    if isinstance(raw, str | os.PathLike):
        return repr(os.fspath(raw))[1:-1][:200]
    return "<bytes>" if isinstance(raw, bytes | bytearray | memoryview) else f"<{type(raw).__name__}>"
