# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from verl_uae.bench.discriminate.worlds import (
    BLUR,
    HUE,
    JPEG,
    NOISE,
    PHOTOGRAPH_NUISANCES,
    PHOTOGRAPH_SEMANTICS,
    REMOVED,
    REPLACED,
    SCENE_NUISANCES,
    SHIFT,
    SWAPPED,
    Corruption,
    Draw,
)
from verl_uae.seeding import normal

SIDE = 64
ALL = [*PHOTOGRAPH_SEMANTICS, *PHOTOGRAPH_NUISANCES, *SCENE_NUISANCES]


def smooth(name: str) -> Tensor:
    """A picture in 8-bit levels with large and small structure."""
    coarse = torch.nn.functional.interpolate(normal((1, 3, 6, 6), 1, name), size=(SIDE, SIDE), mode="bicubic")[0]
    grain = normal((3, SIDE, SIDE), 1, name, "grain")
    return (0.5 + 0.2 * coarse + 0.02 * grain).clamp(0.0, 1.0).mul(255.0).round() / 255.0


IMAGE, OTHER = smooth("image"), smooth("other")
DRAW = Draw(0, "picture", OTHER)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_heavier_levels_are_farther_away_and_the_draw_has_a_name(kind: Corruption) -> None:
    damaged = [kind.apply(IMAGE, level, DRAW) for level in kind.levels]
    for image in damaged:
        assert image.shape == IMAGE.shape and image.dtype == torch.float32
        assert image.amin() >= 0.0 and image.amax() <= 1.0
    errors = [float((image - IMAGE).square().mean()) for image in damaged]
    assert errors[0] > 0.0 and errors == sorted(errors) and len(set(errors)) == 4
    assert all(
        torch.equal(kind.apply(IMAGE, level, DRAW), image) for level, image in zip(kind.levels, damaged, strict=True)
    )


def test_blur_is_a_gaussian() -> None:
    sigma = BLUR.levels[3] * SIDE
    expected = np.stack([gaussian_filter(channel, sigma, mode="mirror", truncate=3.0) for channel in IMAGE.double()])
    assert np.allclose(BLUR.apply(IMAGE, BLUR.levels[3], DRAW).numpy(), expected, atol=1e-5)


def test_noise_has_its_deviation() -> None:
    gray = torch.full((3, SIDE, SIDE), 0.5)
    grain = NOISE.apply(gray, 0.05, DRAW) - gray
    assert float(grain.std()) == pytest.approx(0.05, rel=0.03) and abs(float(grain.mean())) < 0.002
    assert not torch.equal(grain, NOISE.apply(gray, 0.05, Draw(0, "another", OTHER)) - gray)


def test_jpeg_is_pillows() -> None:
    buffer = io.BytesIO()
    pixels = (IMAGE * 255.0).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=15, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer), dtype=np.float32).transpose(2, 0, 1) / 255.0
    assert np.array_equal(JPEG.apply(IMAGE, 85, DRAW).numpy(), expected)


def test_hue_turns_the_colour_circle() -> None:
    turn = 0.12 * DRAW.sign("hue")
    found = HUE.apply(IMAGE, 0.12, DRAW)
    for y, x in ((0, 0), (10, 50), (63, 31)):
        hue, saturation, value = colorsys.rgb_to_hsv(*IMAGE[:, y, x].tolist())
        assert found[:, y, x].tolist() == pytest.approx(
            colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value), abs=1e-5
        )


def test_shift_moves_and_mirrors() -> None:
    pixels = round(SHIFT.levels[2] * SIDE)
    assert pixels == 5
    moved = {sign: SHIFT.apply(IMAGE, SHIFT.levels[2], _with_sign(sign)) for sign in (1.0, -1.0)}
    assert torch.equal(moved[1.0][:, :, :-pixels], IMAGE[:, :, pixels:])
    assert torch.equal(moved[-1.0][:, :, pixels:], IMAGE[:, :, :-pixels])
    assert torch.equal(moved[-1.0][:, :, :pixels], IMAGE[:, :, 1 : pixels + 1].flip(-1))


def _with_sign(sign: float) -> Draw:
    return next(draw for n in range(50) if (draw := Draw(0, f"picture {n}", OTHER)).sign("shift") == sign)


def test_removed_fills_a_square_with_the_mean_around_it() -> None:
    found = REMOVED.apply(IMAGE, 0.25, DRAW)
    changed = (found != IMAGE).any(dim=0).numpy()
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert (bottom - top, right - left) == (16, 16) and changed.sum() >= 250
    around = [
        IMAGE[:, y, x].tolist()
        for y in range(top - 2, bottom + 2)
        for x in range(left - 2, right + 2)
        if not (top <= y < bottom and left <= x < right)
    ]
    expected = np.mean(around, axis=0)
    assert np.allclose(found[:, top:bottom, left:right].numpy(), expected[:, None, None], atol=1e-6)
    # The squares of the levels have one centre.
    larger = (REMOVED.apply(IMAGE, 0.375, DRAW) != IMAGE).any(dim=0).numpy()
    assert larger[top:bottom, left:right].mean() > 0.95


def test_swapped_twice_is_the_picture_and_keeps_every_colour() -> None:
    for level in SWAPPED.levels:
        found = SWAPPED.apply(IMAGE, level, DRAW)
        assert torch.equal(SWAPPED.apply(found, level, DRAW), IMAGE)
        assert torch.equal(found.flatten(1).sort(dim=1).values, IMAGE.flatten(1).sort(dim=1).values)
        assert (found != IMAGE).any(dim=0).sum() >= 1.9 * (level * SIDE) ** 2


def test_replaced_ends_with_the_other_picture() -> None:
    assert torch.equal(REPLACED.apply(IMAGE, 1.0, DRAW), OTHER)
    found = REPLACED.apply(IMAGE, 0.5, DRAW)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[16:48, 16:48] = True
    assert torch.equal(found[:, inside], OTHER[:, inside]) and torch.equal(found[:, ~inside], IMAGE[:, ~inside])
