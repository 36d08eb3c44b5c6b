# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics of the learning experiments against scipy, and what they pair and add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.learning import statistics as s
from verl_uae.errors import ConfigError


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 20, 101])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_the_quantile_is_that_of_students_distribution(freedom: int, level: float) -> None:
    assert s.t_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


@pytest.mark.parametrize(("level", "freedom"), [(0.95, 0), (0.0, 3), (1.0, 3)])
def test_an_impossible_quantile_is_refused(level: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        s.t_quantile(level, freedom)


def test_the_t_interval_is_scipys() -> None:
    values = [0.038, 0.034, 0.045, 0.051, 0.029]
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert s.t_interval(values) == pytest.approx([found.low, found.high], rel=1e-9)
    # Of three seeds it is wider than twice their standard deviation.
    assert s.half_width(3) == pytest.approx(2.484, abs=5e-4)
    # Four at once: each misses with a quarter of the probability.
    four = stats.ttest_1samp(values, 0.0).confidence_interval(1 - 0.05 / 4)
    assert s.t_interval(values, 4) == pytest.approx([four.low, four.high], rel=1e-9)
    assert s.t_interval([0.1]) is None and s.mean_and_spread([0.1]) == (0.1, 0.0)


def test_the_bootstrap_of_one_seed_is_that_over_its_pictures() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, 256)
    exact = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert s.bootstrap([values.tolist()], "test") == pytest.approx([exact.low, exact.high], abs=1e-3)
    assert s.bootstrap([values.tolist()], "test") == s.bootstrap([values.tolist()], "test")
    assert s.bootstrap([values.tolist()], "test") != s.bootstrap([values.tolist()], "other")


def test_the_bootstrap_of_seeds_knows_their_spread_and_that_of_their_pictures() -> None:
    """Its variance is that of drawn seed means plus that of pictures within a seed, each over its count."""
    rng, (seeds, pictures) = np.random.default_rng(2), (12, 80)
    means = rng.normal(0.0, 0.2, seeds)
    groups = means[:, None] + rng.normal(0.0, 1.0, (seeds, pictures))
    between, within = groups.mean(1).var() / seeds, groups.var(1).mean() / seeds / pictures
    low, high = s.bootstrap(groups.tolist(), "test")
    assert (high - low) / 2 == pytest.approx(1.96 * (between + within) ** 0.5, rel=0.08)
    # Seeds alone, where pictures do not differ: scipy's bootstrap of their means.
    flat = np.repeat(means[:, None], 5, axis=1)
    exact = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert s.bootstrap(flat.tolist(), "test") == pytest.approx([exact.low, exact.high], abs=0.01)


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], [1.0, 2.0]]])
def test_a_bootstrap_of_nothing_or_of_ragged_groups_is_refused(groups: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="equally many pictures"):
        s.bootstrap(groups, "test")


def test_leads_are_paired_by_seed_whatever_the_order_of_the_rows() -> None:
    def rows(**rewards: float) -> list[dict[str, Any]]:
        return [{"seed": int(name[1:]), "after": {"reward": reward}} for name, reward in rewards.items()]

    ours, theirs = rows(s2=0.9, s1=0.5), rows(s1=0.4, s2=0.7)
    assert s.leads(s.by_seed(ours, "reward"), s.by_seed(theirs, "reward")) == pytest.approx([0.1, 0.2])
    with pytest.raises(ValueError, match=r"seeds \[1, 2\] cannot be paired with \[1\]"):
        s.leads(s.by_seed(ours, "reward"), s.by_seed(theirs[:1], "reward"))


def test_what_a_run_has_used_up_adds_up_by_the_stage_of_its_steps() -> None:
    curve = [{"step": n + 1, "seconds": 2.0 + n, "stage": float(n % 2)} for n in range(3)]
    row = {"curve": curve, "cost": {"g4u": {"pictures": 64, "flops": 5}, "u4g": {"pictures": 32, "flops": 1}}}
    assert [s.spent(row, axis) for axis in s.AXES] == [[1, 2, 3], [64, 96, 160], [2, 5, 9], [5, 6, 11]]
    one = {"curve": curve, "cost": {"u4g": {"pictures": 32, "flops": 1}}}
    assert s.spent(one, "pictures") == [32, 64, 96]
    with pytest.raises(ConfigError, match="--axis: flops: the result file does not say"):
        s.spent({"curve": curve}, "flops")


def test_seeds_that_settings_are_chosen_on_are_not_those_reported() -> None:
    assert not set(s.TUNING_SEEDS) & set(s.REPORTED_SEEDS) and len(s.REPORTED_SEEDS) == 5
