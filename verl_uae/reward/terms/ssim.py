# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Structural similarity.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.term import RewardTerm

#: Window and standard deviation of the Gaussian in Wang et al. 2004, in pixels.
WINDOW, SIGMA = 11, 1.5


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

    Args:
        a_B3HW: pictures in [0, 1], shape (B, 3, H, W).
        b_B3HW: pictures to compare, same shape.

    Returns:
        Similarity, shape (B,), in [-1, 1]; 1 for equal pictures. Differentiable.
    """
    _, sigma = window_for(*a_B3HW.shape[-2:])
    # torchmetrics derives the window from sigma: 2 * int(3.5 * sigma + 0.5) + 1.
    similarity_B: Tensor = _torchmetrics_ssim()(a_B3HW, b_B3HW, sigma=sigma, data_range=1.0, reduction="none")
    return similarity_B.clamp(-1.0, 1.0)


class SSIM(RewardTerm):
    """:func:`ssim` as a term.

    Raises:
        ConfigError: where torchmetrics is not installed or broken.
    """

    bounds = (-1.0, 1.0)
    model_free = True

    def __init__(self) -> None:
        try:
            _torchmetrics_ssim()
        except (ImportError, RuntimeError) as error:
            raise ConfigError("uae.reward.terms.ssim", f"torchmetrics cannot be imported: {error}") from error

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [-1, 1]."""
        return ssim(batch.reconstruction_B3HW, batch.source_B3HW)


@functools.cache
def _torchmetrics_ssim() -> Callable[..., Any]:
    from torchmetrics.functional.image.ssim import structural_similarity_index_measure

    return structural_similarity_index_measure
