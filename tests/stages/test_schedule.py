# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest

from verl_uae.stages.unified.trainer import Alternation


@pytest.mark.parametrize(("g4u", "u4g", "first"), itertools.product((1, 2, 5), (1, 3), ("g4u", "u4g")))
def test_steps_done_are_those_that_were_taken(g4u: int, u4g: int, first: str) -> None:
    alternation = Alternation(g4u, u4g, first)
    taken = {"g4u": 0, "u4g": 0}
    assert alternation.stage(1) == first
    for step in range(1, 40):
        taken[alternation.stage(step)] += 1
        assert {stage: alternation.done(stage, step) for stage in taken} == taken


def test_a_cycle_has_the_lengths_asked_for() -> None:
    alternation = Alternation(2, 3)
    assert [alternation.stage(step) for step in range(1, 11)] == ["g4u", "g4u", "u4g", "u4g", "u4g"] * 2


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (1, 1, "both")])
def test_impossible_alternations_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="impossible alternation"):
        Alternation(*arguments)
