# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import statistics

import pytest

from verl_uae.scenes.learn.bars import Bar, beyond_seeds, every, lines, mean_and_spread


def test_every_seed_must_reach_the_number() -> None:
    assert every("up", [0.03, 0.02], 0.02) == Bar("up", True, "smallest gain +0.020")
    assert every("up", [0.3, 0.019], 0.02) == Bar("up", False, "smallest gain +0.019")


def test_a_gain_counts_beyond_twice_its_spread_over_seeds() -> None:
    steady, shaky = [0.10, 0.11, 0.12], [0.00, 0.11, 0.22]
    assert 2 * statistics.stdev(steady) < 0.11 and not 2 * statistics.stdev(shaky) < 0.11
    assert beyond_seeds("up", steady).met and not beyond_seeds("up", shaky).met
    assert beyond_seeds("up", steady).figure == "mean gain +0.110, standard deviation over seeds 0.010"


def test_one_seed_has_no_spread() -> None:
    assert mean_and_spread([0.5]) == (0.5, 0.0)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_lines_say_what_is_missed() -> None:
    assert lines([Bar("a", True, "1"), Bar("b", False, "0")]) == ["[met] a: 1", "[MISSED] b: 0"]
