# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Graded damage of pictures: every kind a pure function of picture, level and a named draw.

Lengths are fractions of the picture's side, so a level means the same at every size. The levels of one kind differ in
that number alone: place, direction, noise and the other picture are drawn once per picture and kind.

Shape legend: 3 colour channels, H = W = side in pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from verl_uae.seeding import generator, normal


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decides, by name."""

    seed: int
    picture: str
    """Name of the picture."""
    other_3HW: Tensor
    """Another picture of the same size."""

    def uniform(self, kind: str, count: int) -> list[float]:
        """Numbers in [0, 1)."""
        drawn = torch.rand(count, generator=generator(self.seed, "damage", kind, self.picture))
        return [float(number) for number in drawn]

    def sign(self, kind: str) -> float:
        """1 or -1."""
        return 1.0 if self.uniform(kind, 1)[0] < 0.5 else -1.0


@dataclass(frozen=True, slots=True)
class Corruption:
    """A kind of damage and its four or fewer levels, lightest first."""

    name: str
    levels: tuple[float, ...]
    unit: str
    """What a level counts."""
    apply: Callable[[Tensor, float, Draw], Tensor]
    """(picture in [0, 1] of shape (3, H, W), level, draw) to a picture of the same shape and range."""


def blur(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """Gaussian blur; level: standard deviation, fraction of the side. Borders reflect."""
    from torchvision.transforms.functional import gaussian_blur

    sigma = level * image_3HW.shape[-1]
    blurred: Tensor = gaussian_blur(image_3HW, 2 * math.ceil(3 * sigma) + 1, sigma)
    return blurred


def noise(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """White Gaussian noise, cut to [0, 1]; level: standard deviation."""
    grain_3HW = normal(tuple(image_3HW.shape), draw.seed, "damage", "noise", draw.picture)
    return (image_3HW + level * grain_3HW).clamp(0.0, 1.0)


def jpeg(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """JPEG with 4:2:0 chroma; level: 100 minus the quality."""
    pixels = (image_3HW * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.numpy())).save(buffer, "JPEG", quality=int(100 - level), subsampling=2)
    with Image.open(buffer) as decoded:
        array = np.array(decoded.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255.0


def hue(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """All hues turned, in a drawn direction; level: fraction of the colour circle, at most 0.5."""
    from torchvision.transforms.functional import adjust_hue

    turned: Tensor = adjust_hue(image_3HW, draw.sign("hue") * level)
    return turned.clamp(0.0, 1.0)


def shift(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """Moved left or right; level: fraction of the side. What comes in is the mirror image of the border."""
    side = image_3HW.shape[-1]
    pixels = max(1, round(level * side))
    padded = F.pad(image_3HW[None], (pixels, pixels, 0, 0), mode="reflect")[0]
    start = pixels + int(draw.sign("shift")) * pixels
    return padded[:, :, start : start + side]


def removed(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """A square filled with the mean colour of the pixels around it; level: its side, fraction of the picture's.

    Its centre lies in the middle half of the picture, the same at all levels.
    """
    side = image_3HW.shape[-1]
    half = max(1, round(0.5 * level * side))
    y, x = (round((0.25 + 0.5 * number) * side) for number in draw.uniform("removed", 2))
    inner, outer = _box(y, x, half, side), _box(y, x, half + max(1, side // 32), side)
    ring_HW = torch.zeros(side, side, dtype=torch.bool)
    ring_HW[outer], ring_HW[inner] = True, False
    damaged_3HW = image_3HW.clone()
    damaged_3HW[(slice(None), *inner)] = image_3HW[:, ring_HW].mean(dim=1)[:, None, None]
    return damaged_3HW


def swapped(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """A square of the left half and one of the right half exchanged; level: their side, fraction, at most 0.5."""
    side = image_3HW.shape[-1]
    length = max(1, round(level * side))
    left, right = (
        _corner((0.25 + 0.5 * number) * side, place * side, length, side)
        for number, place in zip(draw.uniform("swapped", 2), (0.25, 0.75), strict=True)
    )
    damaged_3HW = image_3HW.clone()
    damaged_3HW[(slice(None), *left)] = image_3HW[(slice(None), *right)]
    damaged_3HW[(slice(None), *right)] = image_3HW[(slice(None), *left)]
    return damaged_3HW


def replaced(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """The central square taken from another picture; level: its side, fraction. 1 is the whole other picture."""
    side = image_3HW.shape[-1]
    length = max(1, round(level * side))
    centre = _corner(0.5 * side, 0.5 * side, length, side)
    damaged_3HW = image_3HW.clone()
    damaged_3HW[(slice(None), *centre)] = draw.other_3HW[(slice(None), *centre)]
    return damaged_3HW


def _box(y: int, x: int, half: int, side: int) -> tuple[slice, slice]:
    return slice(max(0, y - half), min(side, y + half)), slice(max(0, x - half), min(side, x + half))


def _corner(y: float, x: float, length: int, side: int) -> tuple[slice, slice]:
    """The square of a length around a point, moved inside the picture."""
    top, left = (min(max(round(centre - 0.5 * length), 0), side - length) for centre in (y, x))
    return slice(top, top + length), slice(left, left + length)


#: Of photographs. Blur and shift at 256 pixels: 0.5 to 4 and 2 to 51 pixels.
BLUR = Corruption("blur", (1 / 512, 1 / 256, 1 / 128, 1 / 64), "standard deviation / side", blur)
NOISE = Corruption("noise", (0.02, 0.05, 0.1, 0.2), "standard deviation of pixels in [0, 1]", noise)
JPEG = Corruption("jpeg", (25, 60, 85, 95), "100 - quality", jpeg)
HUE = Corruption("hue", (0.02, 0.05, 0.12, 0.3), "fraction of the colour circle", hue)
SHIFT = Corruption("shift", (1 / 128, 1 / 32, 1 / 12, 1 / 5), "fraction of the side", shift)
REMOVED = Corruption("removed", (1 / 8, 1 / 4, 3 / 8, 1 / 2), "side of the patch / side", removed)
SWAPPED = Corruption("swapped", (1 / 8, 1 / 4, 3 / 8, 1 / 2), "side of the regions / side", swapped)
REPLACED = Corruption("replaced", (1 / 4, 1 / 2, 3 / 4, 1.0), "side of the other picture's part / side", replaced)

PHOTOGRAPH_NUISANCES = (BLUR, NOISE, JPEG, HUE, SHIFT)
PHOTOGRAPH_SEMANTICS = (REMOVED, SWAPPED, REPLACED)

#: Of the 32-pixel scenes: blur of 0.4 to 2 pixels, shift of 1 to 4.
SCENE_NUISANCES = (
    Corruption("blur", (0.4 / 32, 0.7 / 32, 1.2 / 32, 2 / 32), BLUR.unit, blur),
    NOISE,
    JPEG,
    HUE,
    Corruption("shift", (1 / 32, 2 / 32, 3 / 32, 4 / 32), SHIFT.unit, shift),
)
