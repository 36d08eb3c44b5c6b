# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Similarity of pixels, and structural similarity: what no network has an opinion on.

Shape legend: B samples, 3 colour channels, H W pixels, h rows of a band.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.term import RewardTerm
from verl_uae.settings import Rule

SCALES = (1, 2, 4)


def mse_per_sample(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Mean squared RGB difference per sample, shape (B,); in [0, 1] for pictures in [0, 1]."""
    return (a_B3HW - b_B3HW).square().mean(dim=(1, 2, 3))


def pixel_similarity(a_B3HW: Tensor, b_B3HW: Tensor, k: float = 10.0, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Mean over scales of exp(-k * MSE) after averaging blocks of scale x scale pixels.

    A coarse scale forgives a slightly moved edge, the fine one sees it. Scales larger than the picture are left
    out; a block cut off by the border averages the pixels it has.

    Args:
        a_B3HW: pictures in [0, 1].
        b_B3HW: pictures to compare.
        k: steepness, unitless and above 0. At 10 an error of 0.26 RMS gives 0.5, unrelated flat scenes about 0.2.
            Our choice, from runs on the built-in scenes.
        scales: block sizes in pixels.

    Returns:
        Similarity, shape (B,), in (0, 1]; 1 for equal pictures. Differentiable.
    """
    per_scale = []
    for scale in [scale for scale in scales if scale <= min(a_B3HW.shape[-2:])] or [1]:
        a, b = (F.avg_pool2d(x, scale, ceil_mode=True) if scale > 1 else x for x in (a_B3HW, b_B3HW))
        per_scale.append(torch.exp(-k * mse_per_sample(a, b)))
    return torch.stack(per_scale).mean(dim=0)


def bounded_psnr(a_B3HW: Tensor, b_B3HW: Tensor, max_db: float = 50.0) -> Tensor:
    """PSNR of pictures in [0, 1], cut to [0, ``max_db``] decibel (above 0) and divided by it: shape (B,), in [0, 1].

    The PSNR of equal pictures is infinite; here it is 1. 50 dB is an error of 0.8 of an 8-bit level, which nobody
    sees.
    """
    floor = 10.0 ** (-max_db / 10.0)
    decibel_B = -10.0 * torch.log10(mse_per_sample(a_B3HW, b_B3HW).clamp_min(floor))
    return (decibel_B / max_db).clamp(0.0, 1.0)


class PixelSimilarity(RewardTerm):
    """:func:`pixel_similarity` as a term.

    Args:
        k: steepness, above 0.
        scales: block sizes in pixels.
    """

    bounds = (0.0, 1.0)
    model_free = True

    def __init__(self, k: Annotated[float, Rule(above=0)] = 10.0, scales: tuple[int, ...] = SCALES) -> None:
        if not scales or min(scales) < 1:
            raise ConfigError("uae.reward.terms.pixel.scales", f"must be block sizes of at least 1 pixel, got {scales}")
        self.k, self.scales = float(k), tuple(scales)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 1]."""
        return pixel_similarity(batch.source_B3HW, batch.reconstruction_B3HW, self.k, self.scales)


class BoundedPSNR(RewardTerm):
    """:func:`bounded_psnr` as a term.

    Args:
        max_db: the decibel value that counts as 1.
    """

    bounds = (0.0, 1.0)
    model_free = True

    def __init__(self, max_db: Annotated[float, Rule(above=0)] = 50.0) -> None:
        self.max_db = float(max_db)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 1]."""
        return bounded_psnr(batch.source_B3HW, batch.reconstruction_B3HW, self.max_db)


#: Window and standard deviation of the Gaussian in Wang et al. 2004, in pixels.
WINDOW, SIGMA = 11, 1.5

#: The paper's K1 and K2 squared, for values in [0, 1].
C1, C2 = 0.01**2, 0.03**2

#: Pixels of one picture that are worked on at a time; a band has at least one row.
BAND_PIXELS = 2**17


def window_for(height: int, width: int) -> tuple[int, float]:
    """The Gaussian window that fits a picture: side (odd, in pixels) and standard deviation (in pixels).

    The paper's 11 and 1.5 wherever they fit; below 11 pixels the largest odd window inside the picture, with the
    deviation shrunk in proportion.
    """
    largest_odd = max(1, (min(height, width) - 1) // 2 * 2 + 1)
    side = min(WINDOW, largest_odd)
    return side, SIGMA * side / WINDOW


def ssim(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Mean SSIM over pixels and RGB channels, per sample (Wang et al. 2004, eq. 13; K1 = 0.01, K2 = 0.03).

    The border is reflected, so that every pixel has a window. Pictures are looked at one after the other, in bands of
    rows: what that takes does not grow with their number or size, and no picture moves the last bits of another.

    Returns:
        Similarity of pictures in [0, 1], shape (B,), in [-1, 1]; 1 for equal pictures. Differentiable.
    """
    return torch.stack([_ssim_of_one(a, b) for a, b in zip(a_B3HW, b_B3HW, strict=True)]).clamp(-1.0, 1.0)


def _ssim_of_one(a_3HW: Tensor, b_3HW: Tensor) -> Tensor:
    height, width = a_3HW.shape[-2:]
    side, sigma = window_for(height, width)
    border, weights = side // 2, gaussian(side, sigma)
    rows = max(1, BAND_PIXELS // width)
    # A variance does not change with what is taken off a picture; squares of what is left round less.
    level_a, level_b = (image.detach().mean(dim=(1, 2), keepdim=True) for image in (a_3HW, b_3HW))
    padded = [
        F.pad((image - level)[None], (border,) * 4, mode="reflect")[0]
        for image, level in ((a_3HW, level_a), (b_3HW, level_b))
    ]
    sums = []
    for top in range(0, height, rows):
        a, b = (image[:, top : min(top + rows, height) + 2 * border] for image in padded)
        sums.append(_similarity(a, b, level_a, level_b, weights).sum())
    return torch.stack(sums).sum() / (3 * height * width)


def gaussian(side: int, sigma: float) -> list[float]:
    """Weights of a Gaussian at ``side`` whole distances from its middle; they sum to 1."""
    weights = [math.exp(-0.5 * ((place - side // 2) / sigma) ** 2) for place in range(side)]
    return [weight / sum(weights) for weight in weights]


def _similarity(a_3hW: Tensor, b_3hW: Tensor, level_a: Tensor, level_b: Tensor, weights: list[float]) -> Tensor:
    """SSIM at every pixel that has a whole window in the band; of the pictures their levels have been taken off."""
    mean_a, mean_b = _blur(a_3hW, weights), _blur(b_3hW, weights)
    variance_a = _blur(a_3hW * a_3hW, weights) - mean_a * mean_a
    variance_b = _blur(b_3hW * b_3hW, weights) - mean_b * mean_b
    covariance = _blur(a_3hW * b_3hW, weights) - mean_a * mean_b
    mean_a, mean_b = mean_a + level_a, mean_b + level_b
    means = (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
    return means * (2 * covariance + C2) / (variance_a + variance_b + C2)


def _blur(image_3hW: Tensor, weights: list[float]) -> Tensor:
    """Weighted sums over windows, rows and columns apart. Not a convolution, which unfolds its input on a CPU."""
    height, width = (length - len(weights) + 1 for length in image_3hW.shape[-2:])
    columns = sum(weight * image_3hW[..., place : place + width] for place, weight in enumerate(weights))
    assert isinstance(columns, Tensor)
    blurred = sum(weight * columns[..., place : place + height, :] for place, weight in enumerate(weights))
    assert isinstance(blurred, Tensor)
    return blurred


class SSIM(RewardTerm):
    """:func:`ssim` as a term."""

    bounds = (-1.0, 1.0)
    model_free = True

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [-1, 1]."""
        return ssim(batch.reconstruction_B3HW, batch.source_B3HW)
