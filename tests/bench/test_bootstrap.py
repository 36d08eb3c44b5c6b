# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from verl_uae.bench import results
from verl_uae.bench.results import interval, resampled_means
from verl_uae.seeding import generator


def test_the_spread_is_the_standard_error_of_the_mean() -> None:
    """In closed form: the variance of a resampled mean is the population variance over N."""
    values_NK = np.random.default_rng(0).normal([3.0, -1.0], [1.0, 4.0], (50, 2))
    means_RK = resampled_means(values_NK, 1, 20_000)
    assert means_RK.shape == (20_000, 2)
    expected = values_NK.std(axis=0) / math.sqrt(50)
    assert np.allclose(means_RK.std(axis=0), expected, rtol=0.03)
    assert np.allclose(means_RK.mean(axis=0), values_NK.mean(axis=0), atol=4 * expected.max() / math.sqrt(20_000))
    low, high = interval(means_RK[:, 0])
    assert (high - low) == pytest.approx(2 * 1.96 * expected[0], rel=0.05)


def test_the_numbers_are_named_and_independent_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    values_NK = np.arange(7.0)[:, None]
    whole = resampled_means(values_NK, 4, 30)
    drawn_RN = torch.randint(7, (30, 7), generator=generator(4, "bench bootstrap", 7)).numpy()
    assert np.array_equal(whole[:, 0], drawn_RN.mean(axis=1))
    assert not np.array_equal(whole, resampled_means(values_NK, 5, 30))
    monkeypatch.setattr(results, "_CHUNK", 21)
    assert np.array_equal(whole, resampled_means(values_NK, 4, 30))


def test_rows_stay_whole() -> None:
    """A column that is the negative of another keeps their sum at zero in every resample."""
    column_N = np.random.default_rng(1).normal(size=20)
    means_RK = resampled_means(np.stack([column_N, -column_N], axis=1), 0, 200)
    assert np.abs(means_RK.sum(axis=1)).max() < 1e-12


def test_interval_cuts_both_tails() -> None:
    assert interval(np.arange(1001) / 10.0, 0.9) == pytest.approx([5.0, 95.0])
    with pytest.raises(ValueError, match="no pair"):
        resampled_means(np.empty((0, 2)), 0)
