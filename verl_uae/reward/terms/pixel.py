# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Similarity of pixels: what no network has an opinion on.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.term import RewardTerm

SCALES = (1, 2, 4)


def mse_per_sample(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Mean squared RGB difference per sample, shape (B,); in [0, 1] for pictures in [0, 1]."""
    return (a_B3HW - b_B3HW).square().mean(dim=(1, 2, 3))


def pixel_similarity(a_B3HW: Tensor, b_B3HW: Tensor, k: float = 10.0, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Mean over scales of exp(-k * MSE) after averaging blocks of scale x scale pixels.

    A coarse scale forgives a slightly moved edge, the fine one sees it. Scales larger than the picture are left
    out; a block cut off by the border averages the pixels it has.

    Args:
        a_B3HW: pictures in [0, 1], shape (B, 3, H, W).
        b_B3HW: pictures to compare, same shape.
        k: steepness, unitless and above 0. At 10 an error of 0.26 RMS gives 0.5, unrelated flat scenes about 0.2.
            Our choice, from runs on the built-in scenes.
        scales: block sizes in pixels.

    Returns:
        Similarity, shape (B,), in (0, 1]; 1 for equal pictures. Differentiable.
    """
    smallest_side = min(a_B3HW.shape[-2:])
    used = [scale for scale in scales if scale <= smallest_side] or [1]
    per_scale = []
    for scale in used:
        a, b = a_B3HW, b_B3HW
        if scale > 1:
            a, b = (F.avg_pool2d(images, scale, ceil_mode=True) for images in (a, b))
        per_scale.append(torch.exp(-k * mse_per_sample(a, b)))
    return torch.stack(per_scale).mean(dim=0)


def bounded_psnr(a_B3HW: Tensor, b_B3HW: Tensor, max_db: float = 50.0) -> Tensor:
    """PSNR for a peak of 1, cut to [0, ``max_db``] and divided by it.

    The PSNR of equal pictures is infinite; here it is 1. 50 dB is an error of 0.8 of an 8-bit level, which nobody
    sees.

    Args:
        a_B3HW: pictures in [0, 1], shape (B, 3, H, W).
        b_B3HW: pictures to compare, same shape.
        max_db: the cut in decibel, above 0.

    Returns:
        Similarity, shape (B,), in [0, 1].
    """
    floor = 10.0 ** (-max_db / 10.0)
    decibel_B = -10.0 * torch.log10(mse_per_sample(a_B3HW, b_B3HW).clamp_min(floor))
    return (decibel_B / max_db).clamp(0.0, 1.0)


class PixelSimilarity(RewardTerm):
    """:func:`pixel_similarity` as a term.

    Args:
        k: steepness.
        scales: block sizes in pixels.
    """

    bounds = (0.0, 1.0)
    model_free = True

    def __init__(self, k: float = 10.0, scales: tuple[int, ...] = SCALES) -> None:
        if not (math.isfinite(k) and k > 0.0):
            raise ConfigError("uae.reward.terms.pixel.k", f"must be above 0, got {k}")
        if not scales or any(int(scale) != scale or scale < 1 for scale in scales):
            raise ConfigError("uae.reward.terms.pixel.scales", f"must be block sizes of at least 1 pixel, got {scales}")
        self.k = float(k)
        self.scales = tuple(int(scale) for scale in scales)

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

    def __init__(self, max_db: float = 50.0) -> None:
        if not (math.isfinite(max_db) and max_db > 0.0):
            raise ConfigError("uae.reward.terms.psnr.max_db", f"must be above 0, got {max_db}")
        self.max_db = float(max_db)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 1]."""
        return bounded_psnr(batch.source_B3HW, batch.reconstruction_B3HW, self.max_db)
