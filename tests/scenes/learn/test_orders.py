# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from verl_uae.scenes.learn.orders import orders, rank_correlation


def test_it_is_spearmans_correlation_within_groups() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, 40).astype(float)
    truth = values + rng.integers(0, 4, 40)
    groups = [str(number // 8) for number in range(40)]
    expected = np.mean([spearmanr(values[s : s + 8], truth[s : s + 8]).statistic for s in range(0, 40, 8)])
    assert rank_correlation(values.tolist(), truth.tolist(), groups) == pytest.approx(expected, abs=1e-12)
    # Differences between groups do not count.
    offset = [100.0 * int(group) for group in groups]
    assert rank_correlation((values + offset).tolist(), truth.tolist(), groups) == pytest.approx(expected, abs=1e-12)


def test_groups_without_an_order_are_left_out() -> None:
    values, truth = [1.0, 2.0, 3.0, 3.0], [1.0, 2.0, 5.0, 6.0]
    assert rank_correlation(values, truth, ["a", "a", "b", "b"]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no group has an order"):
        rank_correlation([1.0, 1.0], [1.0, 2.0], ["a", "a"])


def test_terms_are_compared_on_the_same_drawings(untrained) -> None:
    terms = {"pixel": ("pixel", {}), "again": ("pixel", {"k": 20.0}), "ssim": ("ssim", {})}
    found = orders(untrained, terms, 0, pictures=6)
    assert found == orders(untrained, terms, 0, pictures=6)
    assert set(found) == set(terms) and all(-1.0 <= value <= 1.0 for value in found.values() if math.isfinite(value))
