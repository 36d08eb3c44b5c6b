# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from verl_uae.reward.composition import MIN_STD, Composition, Part, RunningMoments


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
    composition = Composition([Part("clip", 2.0, True), Part("pixel", 1.0, False), Part("lpips", -0.5, True)])
    rng = np.random.default_rng(1)
    rows = [dict(zip(("clip", "pixel", "lpips", "watched"), row, strict=True)) for row in rng.uniform(size=(20, 4))]
    columns = {label: np.array([row[label] for row in rows]) for label in rows[0]}
    composition.learn(rows[:8])
    composition.learn(rows[8:])
    expected = columns["pixel"].copy()
    for label, factor in (("clip", 2.0), ("lpips", -0.5)):
        expected += factor * (columns[label] - columns[label].mean()) / columns[label].std()
    assert np.allclose([composition.value(row) for row in rows], expected, rtol=1e-12)


def test_a_term_that_never_differs_gives_nothing() -> None:
    composition = Composition([Part("flat", 1.0, True)])
    composition.learn([{"flat": 0.3}] * 5)
    assert composition.value({"flat": 0.3}) == 0.0
    assert composition.value({"flat": 0.3 + 1e-9}) == pytest.approx(1e-9 / MIN_STD, rel=1e-6)


def test_without_a_normalised_term_it_is_inactive_and_the_plain_sum() -> None:
    composition = Composition([Part("a", 0.5, False), Part("b", -2.0, False)])
    composition.learn([{"a": 1.0, "b": 1.0}])
    assert not composition.active and composition.state_dict() == {}
    assert composition.value({"a": 0.4, "b": 0.3}) == pytest.approx(0.2 - 0.6)


def test_state_survives_json_to_the_last_bit() -> None:
    first = Composition([Part("a", 1.0, True), Part("b", 1.0, True)])
    first.learn([{"a": 0.1, "b": 0.7}, {"a": 0.3, "b": 0.9}])
    state = json.loads(json.dumps(first.state_dict()))
    second = Composition([Part("a", 1.0, True), Part("new", 1.0, True)])
    second.load_state_dict(state)
    assert second.moments["a"] == first.moments["a"] and second.moments["new"] == RunningMoments()
    assert second.active
