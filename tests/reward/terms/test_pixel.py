# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from verl_uae.errors import ConfigError
from verl_uae.reward.terms.pixel import BoundedPSNR, PixelSimilarity, bounded_psnr, pixel_similarity


def _blocks(image: np.ndarray, scale: int) -> np.ndarray:
    """Mean of scale x scale blocks of (3, H, W) in float64, blocks at the border cut off."""
    height, width = image.shape[1:]
    starts = [(top, left) for top in range(0, height, scale) for left in range(0, width, scale)]
    return np.stack([image[:, t : t + scale, left : left + scale].mean(axis=(1, 2)) for t, left in starts])


@pytest.mark.parametrize("size", [16, 7, (5, 9), 4, 3, 2, 1])
def test_pixel_similarity_against_numpy(make_batch, size) -> None:
    batch = make_batch(3, size=size)
    found = pixel_similarity(batch.source_B3HW, batch.reconstruction_B3HW, k=7.0)
    for index in range(3):
        a, b = (t[index].double().numpy() for t in (batch.source_B3HW, batch.reconstruction_B3HW))
        scales = [scale for scale in (1, 2, 4) if scale <= min(a.shape[1:])]
        expected = np.mean([np.exp(-7.0 * np.mean((_blocks(a, s) - _blocks(b, s)) ** 2)) for s in scales])
        assert found[index].item() == pytest.approx(expected, rel=1e-5)


def test_bounded_psnr_against_scikit_image(make_batch) -> None:
    batch = make_batch(3)
    found = bounded_psnr(batch.source_B3HW, batch.reconstruction_B3HW, max_db=40.0)
    for index in range(3):
        a, b = (t[index].numpy() for t in (batch.source_B3HW, batch.reconstruction_B3HW))
        assert found[index].item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0) / 40.0, rel=1e-5)


@pytest.mark.parametrize("function", [pixel_similarity, bounded_psnr])
@pytest.mark.parametrize("size", [1, 2, 32])
def test_extremes_stay_in_bounds(function, size: int) -> None:
    black, white = torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)
    assert function(black, black).item() == function(white, white).item() == 1.0
    assert 0.0 <= function(black, white).item() < 1e-4
    assert math.isnan(function(black, white * math.nan).item())


def test_half_point_of_the_docstring() -> None:
    flat = torch.full((1, 3, 8, 8), 0.2)
    assert pixel_similarity(flat, flat + math.sqrt(math.log(2.0) / 10.0)).item() == pytest.approx(0.5, abs=1e-5)


def test_gradient_is_that_of_the_formula() -> None:
    a = torch.rand(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = torch.rand(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pixel_similarity(a, x), (b,))


@pytest.mark.parametrize(
    ("term", "params"),
    [
        (PixelSimilarity, {"k": 0}),
        (PixelSimilarity, {"k": math.inf}),
        (PixelSimilarity, {"scales": []}),
        (PixelSimilarity, {"scales": [2, 0]}),
        (BoundedPSNR, {"max_db": -1}),
    ],
)
def test_impossible_settings(term, params) -> None:
    with pytest.raises(ConfigError, match=rf"^here\.{next(iter(params))}: must be"):
        term.check_params(params, "here")
