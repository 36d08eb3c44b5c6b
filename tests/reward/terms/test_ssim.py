# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from verl_uae.reward import RewardBatch
from verl_uae.reward.terms.pixel import SSIM, ssim, window_for


def _reference(a: np.ndarray, b: np.ndarray, side: int, sigma: float) -> float:
    """SSIM of (3, H, W) by its definition, float64, borders mirrored without repeating the edge."""
    axis = np.arange(side) - side // 2
    line = np.exp(-(axis**2) / (2.0 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2

    def smooth(image: np.ndarray) -> np.ndarray:
        return np.stack([correlate(channel, kernel, mode="mirror") for channel in image])

    mu_a, mu_b = smooth(a), smooth(b)
    var_a, var_b, cov = smooth(a * a) - mu_a**2, smooth(b * b) - mu_b**2, smooth(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    return float(np.mean((2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))))


@pytest.mark.parametrize("size", [32, 11, 10, 9, 8, 5, (4, 30), 3, 2, 1])
def test_against_the_definition(make_batch, size) -> None:
    batch = make_batch(3, size=size)
    found = SSIM().score(batch)
    side, sigma = window_for(*batch.source_B3HW.shape[-2:])
    assert side % 2 == 1 and side <= min(11, *batch.source_B3HW.shape[-2:])
    for index in range(3):
        a, b = (t[index].double().numpy() for t in (batch.source_B3HW, batch.reconstruction_B3HW))
        assert found[index].item() == pytest.approx(_reference(a, b, side, sigma), abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_extremes_stay_in_bounds(size: int) -> None:
    images = {
        "black": torch.zeros(1, 3, size, size),
        "white": torch.ones(1, 3, size, size),
        "noise": torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)),
    }
    for a in images.values():
        assert ssim(a, a).item() == pytest.approx(1.0, abs=1e-7)
        for b in images.values():
            assert -1.0 <= ssim(a, b).item() <= 1.0
    assert math.isnan(ssim(images["black"], images["white"] * math.nan).item())


def test_a_bad_picture_leaves_the_others(make_batch) -> None:
    batch = make_batch(3)
    clean = SSIM().score(batch)
    reconstruction = batch.reconstruction_B3HW.clone()
    reconstruction[1] = math.nan
    found = SSIM().score(RewardBatch(batch.source_B3HW, reconstruction))
    assert torch.equal(found[[0, 2]], clean[[0, 2]]) and found[1].isnan()


def test_bands_and_neighbours_change_nothing(make_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(3, size=(37, 29))
    whole = SSIM().score(batch)
    assert torch.equal(torch.cat([SSIM().score(batch.take([index])) for index in range(3)]), whole)
    for pixels in (1, 29 * 5, 29 * 36):
        monkeypatch.setattr("verl_uae.reward.terms.pixel.BAND_PIXELS", pixels)
        assert SSIM().score(batch).tolist() == pytest.approx(whole.tolist(), abs=2e-7)


def test_against_torchmetrics_in_double_precision(make_batch) -> None:
    from torchmetrics.functional.image.ssim import structural_similarity_index_measure

    batch = make_batch(2, size=(40, 31))
    a, b = batch.source_B3HW, batch.reconstruction_B3HW
    expected = structural_similarity_index_measure(a.double(), b.double(), data_range=1.0, reduction="none")
    assert ssim(a, b).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_gradient_reaches_the_picture(make_batch) -> None:
    batch = make_batch(1, size=(9, 13))
    picture = batch.reconstruction_B3HW.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ssim(x, batch.source_B3HW.double()), picture, atol=1e-6)
