# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from verl_uae.data.images import (
    ImageLimits,
    decode_image,
    image_digest,
    source_digest,
    source_image,
    to_tensor,
    upright_size,
)
from verl_uae.errors import DataError, DecodeError


def _peak_rss_kb() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0])


def _reset_peak_rss() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def test_hostile_inputs_are_refused_quickly_and_in_bounded_memory(hostile_inputs) -> None:
    decode_image(_png(Image.new("RGB", (64, 64))))  # loads the plugins outside the measurement
    gc.collect()
    measured = _reset_peak_rss()
    before = _peak_rss_kb()
    slowest, refused = (0.0, ""), 0
    for name, data, must_refuse in hostile_inputs:
        start = time.thread_time()
        try:
            img = decode_image(data, path="some.parquet", row=7)
        except DecodeError as error:
            refused += 1
            assert error.row == 7 and error.message, name
        else:
            assert not must_refuse, f"{name} was let in"
            assert img.mode == "RGB" and len(img.tobytes()) == 3 * img.width * img.height
        slowest = max(slowest, (time.thread_time() - start, name))
    assert len(hostile_inputs) == 2_000 and refused > 1_000
    assert slowest[0] <= 0.1, slowest
    if measured:
        assert _peak_rss_kb() - before <= 64 * 1024


def test_no_global_flag_of_pillow_is_touched(hostile_inputs) -> None:
    flags = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    for _, data, _ in hostile_inputs[:60]:
        with contextlib.suppress(DecodeError):
            decode_image(data)
    assert flags == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))


def test_a_bomb_is_refused_before_pillow_sees_it(monkeypatch, hostile_inputs) -> None:
    bomb = next(data for name, data, _ in hostile_inputs if name == "png 12000")
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("Pillow was asked"))
    with pytest.raises(DecodeError, match="12000 x 12000 pixels, limit 16777216"):
        decode_image(bomb)


def _png(img: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    img.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_lossless_round_trip_is_exact(format: str, make_picture: Callable, make_bytes: Callable) -> None:
    img = make_picture()
    data = make_bytes(img, format, **({"lossless": True} if format == "WEBP" else {}))
    assert image_digest(decode_image(data)) == image_digest(img)


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path, make_picture: Callable) -> None:
    img = make_picture()
    file = tmp_path / "a.png"
    file.write_bytes(_png(img))
    data = file.read_bytes()
    sources = [data, bytearray(data), file, str(file), img, {"bytes": data, "path": None}]
    sources += [{"bytes": None, "path": str(file)}, {"bytes": data, "path": "gone.png"}, {"image": img}]
    assert {image_digest(decode_image(source)) for source in sources} == {image_digest(img)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_picture(orientation: int, make_picture: Callable) -> None:
    upright = np.asarray(make_picture(48, 32))
    # How a camera held that way stores the picture (EXIF 2.3, tag 0x0112), in NumPy terms.
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(store[orientation](upright)))
    decoded = decode_image(_png(stored, exif=exif))
    assert np.array_equal(np.asarray(decoded), upright)
    assert decoded.info == {} and len(decoded.getexif()) == 0


def test_transparency_is_flattened_on_white() -> None:
    level = np.linspace(0, 255, 64, dtype=np.uint8)
    alpha = np.broadcast_to(level, (32, 64))
    rgba = np.dstack([np.full((32, 64), 200), np.zeros((32, 64)), np.full((32, 64), 40), alpha]).astype(np.uint8)
    expected = rgba[..., :3] * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    decoded = np.asarray(decode_image(_png(Image.fromarray(rgba))))
    assert np.abs(decoded - expected).max() <= 1

    palette = Image.new("P", (32, 32), 3)
    palette.putpalette([0] * 12)
    assert decode_image(_png(palette, transparency=3)).getpixel((5, 5)) == (255, 255, 255)
    grey_alpha = Image.new("LA", (32, 32), (10, 0))
    assert decode_image(_png(grey_alpha)).getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bit_gray_is_scaled_and_not_clipped() -> None:
    levels = np.linspace(0, 65_535, 32 * 32).astype(np.uint16).reshape(32, 32)
    decoded = np.asarray(decode_image(_png(Image.fromarray(levels))))
    assert np.array_equal(decoded[..., 0], np.round(levels / 257).astype(np.uint8))
    transparent = Image.fromarray(np.full((32, 32), 30_000, np.uint16))
    assert decode_image(_png(transparent, transparency=30_000)).getpixel((0, 0)) == (117, 117, 117)


def test_metadata_does_not_survive(make_picture: Callable, make_bytes: Callable) -> None:
    exif = Image.Exif()
    exif[0x010E] = "my home address"
    data = make_bytes(make_picture(), "JPEG", exif=exif, comment=b"secret", icc_profile=b"x" * 200)
    decoded = decode_image(data)
    assert decoded.info == {} and not decoded.getexif() and decoded.format is None
    assert b"home" not in make_bytes(decoded, "PNG")


def test_phone_jpeg_with_a_second_picture_gives_the_first(make_picture: Callable, make_bytes: Callable) -> None:
    first, second = make_picture(seed=1), make_picture(seed=2)
    data = make_bytes(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    difference = np.asarray(decode_image(data)).astype(int) - np.asarray(first)
    assert np.abs(difference).mean() < 5


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png", "file:///etc/passwd", "a\0b", "a" * 5000]
)
def test_paths_stay_inside_their_root(name: str, tmp_path: Path, make_picture: Callable) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(_png(make_picture()))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "good.png").write_bytes(_png(make_picture()))
    assert decode_image({"path": "good.png"}, root=root).size == (96, 64)
    with pytest.raises(DecodeError):
        decode_image({"bytes": None, "path": name}, root=root)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(DecodeError, match=r"not a regular file|Is a directory"):
            decode_image(path)
    with pytest.raises(DecodeError, match=r"absent\.png: FileNotFoundError"):
        decode_image(tmp_path / "absent.png")
    for source in (None, 3, {}, {"bytes": None, "path": None}, {"bytes": "text"}, ["a"]):
        with pytest.raises(DecodeError):
            decode_image(source)  # type: ignore[arg-type]


def test_error_names_file_row_and_reason(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(b"<html>")
    with pytest.raises(DecodeError, match=r"page\.png: format markup .* not accepted"):
        decode_image(tmp_path / "page.png")
    with pytest.raises(DecodeError, match=r"^train\.parquet, row 3: empty file$"):
        decode_image(b"", path="train.parquet", row=3)


def test_limits(make_picture: Callable) -> None:
    data = _png(make_picture(96, 64))
    assert decode_image(data, limits=ImageLimits(max_pixels=96 * 64, min_side=64, max_aspect=1.5)).size == (96, 64)
    for limits in ({"max_pixels": 96 * 64 - 1}, {"min_side": 65}, {"max_aspect": 1.49}, {"max_bytes": len(data) - 1}):
        with pytest.raises(DecodeError, match=r"limit|at least"):
            decode_image(data, limits=ImageLimits(**limits))
    for wrong in ({"max_pixels": 10**9}, {"max_bytes": 0}, {"min_side": 0}, {"min_side": 5000}):
        with pytest.raises(ValueError, match="must"):
            ImageLimits(**wrong)


def test_picture_objects_pass_the_same_checks(make_picture: Callable, make_bytes: Callable) -> None:
    img = make_picture()
    decoded = decode_image(img)
    assert decoded is not img and decoded.tobytes() == img.tobytes()
    with pytest.raises(DecodeError, match="GIF"):
        decode_image(Image.open(io.BytesIO(make_bytes(img, "GIF"))))
    with pytest.raises(DecodeError, match="at least"):
        decode_image(Image.new("RGB", (4, 4)))


def test_image_digest_is_of_size_and_pixels(make_picture: Callable) -> None:
    img = make_picture()
    assert image_digest(img) == hashlib.sha256(b"96x64:" + np.asarray(img).tobytes()).hexdigest()
    blank = {image_digest(Image.new("RGB", size)) for size in ((32, 64), (64, 32))}
    assert len(blank) == 2
    with pytest.raises(ValueError, match="RGB"):
        image_digest(img.convert("L"))


def test_the_source_of_a_prompt_is_its_first_picture(make_picture: Callable) -> None:
    first, other = make_picture(seed=0), make_picture(seed=1)
    system = {"role": "system", "content": "Look."}
    asking = {"role": "user", "content": [{"type": "text", "text": "Say."}, {"type": "image", "image": first}]}
    more = {"role": "user", "content": [{"type": "image", "image": other}]}
    assert source_image([system, asking, more]) is first
    assert source_digest([system, asking, more], {}) == image_digest(first)
    assert source_digest([more], {"sha256": ""}) == image_digest(other)
    assert source_digest([asking], {"sha256": "from the data set"}) == "from the data set"
    for messages in ([], [system], [{"role": "user", "content": None}], [{"role": "user", "content": [{"a": 1}]}]):
        with pytest.raises(DataError, match="has no image"):
            source_image(messages)
        with pytest.raises(DataError, match="has no image"):
            source_digest(messages, {})


def test_to_tensor_is_exact_without_resizing(make_picture: Callable) -> None:
    imgs = [make_picture(64, 48, seed) for seed in range(3)]
    pixels = to_tensor(imgs, (48, 64))
    assert pixels.shape == (3, 3, 48, 64) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    expected = np.stack([np.asarray(img) for img in imgs]).transpose(0, 3, 1, 2) / np.float32(255)
    assert np.array_equal(pixels.numpy(), expected)


def test_to_tensor_cuts_the_centre_and_does_not_stretch() -> None:
    stripes = np.zeros((40, 120, 3), np.uint8)
    stripes[:, 40:80] = (255, 128, 0)  # the central square of a 3:1 picture
    wide = Image.fromarray(stripes)
    for img in (wide, wide.transpose(Image.Transpose.TRANSPOSE)):
        pixels = to_tensor([img], 20)
        assert pixels.shape == (1, 3, 20, 20)
        expected = torch.tensor([1.0, 128 / 255, 0.0]).view(1, 3, 1, 1).expand_as(pixels)
        # The outermost line blends with what was cut, as it does in scale-then-crop.
        torch.testing.assert_close(pixels[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_to_tensor_equals_scaling_to_cover_then_cutting(make_picture: Callable) -> None:
    img = make_picture(200, 100)
    reference = img.resize((64, 32), Image.Resampling.BICUBIC).crop((16, 0, 48, 32))
    difference = to_tensor([img], 32) - to_tensor([reference], 32)
    assert difference.abs().max() <= 1 / 255
    with pytest.raises(ValueError, match="RGB"):
        to_tensor([], 8)


@pytest.mark.parametrize("orientation", [None, *range(1, 9), 99])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_upright_size_is_that_of_the_decoded_picture(
    format: str, orientation: int | None, make_picture: Callable, make_bytes: Callable, monkeypatch
) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = make_bytes(make_picture(48, 32), format, exif=exif)
    expected = decode_image(data).size
    assert expected == ((32, 48) if orientation in (5, 6, 7, 8) else (48, 32))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # nothing is decoded
    assert upright_size(data) == expected


def test_upright_size_never_lets_out_a_size_beyond_the_limits(hostile_inputs) -> None:
    passed = 0
    for name, data, _ in hostile_inputs[:300]:
        with contextlib.suppress(DecodeError):
            width, height = upright_size(data)
            passed += 1
            assert min(width, height) >= 16 and width * height <= 4096**2, name
    assert 0 < passed < 300


def test_what_a_picture_is_given_as_instead_is_named(tmp_path: Path, make_picture: Callable) -> None:
    make_picture().save(tmp_path / "a b.png")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    for cell, reason in (
        ("https://host/a.png", "is a URL; pictures are read from files: download it"),
        ({"bytes": None, "path": "s3://bucket/a.png"}, "is a URL"),
        ("data:image/png;base64,iVBORw0KGgo=", "is a URL"),
        ({"image": "a b.png", "path": None}, "a picture is given as bytes or path; this one as image"),
        ({"bytes": None, "path": None}, "this one as nothing"),
        (pointer, "git lfs pull"),
        (f"file://{tmp_path.parent}/a.png", "path leaves its folder"),
    ):
        with pytest.raises(DecodeError, match=reason):
            decode_image(cell, root=tmp_path)
    expected = image_digest(decode_image(tmp_path / "a b.png"))
    assert image_digest(decode_image(f"file://{tmp_path}/a%20b.png", root=tmp_path)) == expected


def test_a_reason_does_not_quote_a_whole_picture() -> None:
    """JSON that holds pictures as base64, in the place of bytes and in that of a path."""
    text = "A" * 100_000
    with pytest.raises(DecodeError, match="bytes are text; in JSON a picture is named by its path"):
        decode_image({"bytes": text, "path": None})
    for cell in (text, {"bytes": None, "path": text}):
        with pytest.raises(DecodeError, match="File name too long") as raised:
            decode_image(cell)
        assert len(str(raised.value)) < 1000
