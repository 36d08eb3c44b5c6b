# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import rankdata

from verl_uae.reward.record import LARGEST
from verl_uae.reward.step import MIN_STD, Composition, Part, RunningMoments, group_ranks


def test_running_moments_are_those_of_all_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 0.01, 1000)
    moments = RunningMoments()
    for part in np.split(values, [1, 1, 17, 400]):
        moments.update(part.tolist())
    assert moments.count == 1000
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.std == pytest.approx(values.std(), rel=1e-9)
    assert RunningMoments().std == 0.0


def test_normalised_terms_enter_the_sum_in_units_of_their_spread() -> None:
    composition = Composition([Part("clip", 2.0, "running"), Part("pixel", 1.0), Part("lpips", -0.5, "running")])
    rng = np.random.default_rng(1)
    rows = [dict(zip(("clip", "pixel", "lpips", "watched"), row, strict=True)) for row in rng.uniform(size=(20, 4))]
    columns = {label: np.array([row[label] for row in rows]) for label in rows[0]}
    composition.learn(rows[:8])
    composition.learn(rows[8:])
    expected = columns["pixel"].copy()
    for label, factor in (("clip", 2.0), ("lpips", -0.5)):
        expected += factor * (columns[label] - columns[label].mean()) / columns[label].std()
    assert np.allclose(composition.values(rows, ["g"] * len(rows)), expected, rtol=1e-12)


def test_the_largest_values_break_no_statistics() -> None:
    composition = Composition([Part("loud", 1.0, "running")])
    for value in (0.5, LARGEST, -LARGEST):
        composition.learn([{"loud": value}])
    assert all(map(math.isfinite, composition.values([{"loud": LARGEST}, {"loud": -LARGEST}], ["g", "g"])))
    json.dumps(composition.state_dict(), allow_nan=False)


def test_a_term_that_never_differs_gives_nothing() -> None:
    composition = Composition([Part("flat", 1.0, "running")])
    composition.learn([{"flat": 0.3}] * 5)
    assert composition.values([{"flat": 0.3}, {"flat": 0.3 + 1e-9}], ["g", "g"]) == [
        0.0,
        pytest.approx(1e-9 / MIN_STD, rel=1e-6),
    ]


def test_without_a_normalised_term_it_is_inactive_and_the_plain_sum() -> None:
    composition = Composition([Part("a", 0.5), Part("b", -2.0)])
    composition.learn([{"a": 1.0, "b": 1.0}])
    assert not composition.active and composition.state_dict() == {}
    assert composition.values([{"a": 0.4, "b": 0.3}], ["g"]) == [pytest.approx(0.2 - 0.6)]


def test_state_survives_json_to_the_last_bit() -> None:
    first = Composition([Part("a", 1.0, "running"), Part("b", 1.0, "running")])
    first.learn([{"a": 0.1, "b": 0.7}, {"a": 0.3, "b": 0.9}])
    state = json.loads(json.dumps(first.state_dict()))
    second = Composition([Part("a", 1.0, "running"), Part("new", 1.0, "running")])
    second.learn([{"a": 0.5, "new": 0.5}])
    second.load_state_dict(state)
    assert second.moments["a"] == first.moments["a"] and second.moments["new"] == RunningMoments()
    assert second.active


def test_ranks_are_those_of_scipy_within_each_group() -> None:
    rng = np.random.default_rng(2)
    groups = [str(group) for group in rng.integers(0, 5, 60)]
    values = rng.integers(0, 6, 60).astype(float).tolist()
    expected = np.zeros(60)
    for group in set(groups):
        where = [index for index, name in enumerate(groups) if name == group]
        # scipy's mid-ranks begin at 1.
        expected[where] = (rankdata([values[index] for index in where]) - 1) / (len(where) - 1)
    assert np.allclose(group_ranks(values, groups), expected, atol=1e-12)


def test_a_tie_is_worth_half_and_a_member_alone_is_in_the_middle() -> None:
    values = [0.500, 0.501, 0.9, 0.7]
    assert group_ranks(values, ["a", "a", "a", "b"]) == [0.0, 0.5, 1.0, 0.5]
    assert group_ranks(values, ["a", "a", "a", "b"], tie=0.01) == [0.25, 0.25, 1.0, 0.5]


def test_a_ranked_term_enters_the_sum_as_its_rank_and_a_penalty_turned() -> None:
    composition = Composition([Part("clip", 1.0, "rank"), Part("lpips", -2.0, "rank"), Part("pixel", 0.5)])
    assert composition.active and composition.state_dict() == {}
    rows = [{"clip": 0.90, "lpips": 0.1, "pixel": 0.2}, {"clip": 0.91, "lpips": 0.3, "pixel": 0.4}]
    assert composition.values(rows, ["g", "g"]) == [pytest.approx(0.0 - 0.0 + 0.1), pytest.approx(1.0 - 2.0 + 0.2)]
