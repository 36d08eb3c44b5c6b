# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random

import pytest

from verl_uae.scenes.crowd import evaluate as e
from verl_uae.scenes.crowd.world import CELLS, Crowd, caption, mentioned, render, sample_crowd


def test_a_perfect_drawing_is_all_right():
    rng = random.Random(0)
    crowds = [sample_crowd(rng, 12) for _ in range(3)]
    found = e.score(render(crowds), crowds, [caption(c, rng) for c in crowds])
    assert found.pop("mse") == [0.0] * 3
    assert all(values == [1.0] * 3 for values in found.values()) and len(found) == 7


def test_what_stands_after_the_cut_is_counted_apart():
    """A drawing of exactly the first seven sentences of twelve."""
    rng = random.Random(1)
    crowd = sample_crowd(rng, 12)
    text = caption(crowd, rng)
    early = list(mentioned(text))[:7]
    drawn = Crowd(tuple(crowd.objects[name] if name in early else None for name in CELLS))
    found = e.score(render([drawn]), [crowd], [text])
    assert found["object_before"] == [1.0] and found["object_after"] == [0.0]
    assert found["object"] == pytest.approx([7 / 12]) and found["occupied"] == pytest.approx([11 / 16])
    assert found["mse"][0] > 0


def test_a_short_caption_has_nothing_after_the_cut():
    rng = random.Random(2)
    crowd = sample_crowd(rng, 7)
    found = e.score(render([crowd]), [crowd], [caption(crowd, rng)])
    assert found["object_before"] == [1.0] and math.isnan(found["object_after"][0])


def test_held_out_crowds_are_repeatable_and_held_out():
    crowds, captions = e.held_out(5, 10, 0)
    assert (crowds, captions) == e.held_out(5, 10, 0) and crowds != e.held_out(5, 10, 1)[0]
    assert {c.split for c in crowds} == {"val"} and {len(c.objects) for c in crowds} == {5}
    assert [mentioned(text) for text in captions] == [c.objects for c in crowds]


def test_the_interval_is_that_of_the_mean_over_crowds():
    values = [float(i % 2) for i in range(400)]
    found = e.interval([*values, float("nan")], "test")
    assert found is not None and found["mean"] == 0.5
    # The normal interval of a share: 0.5 -+ 1.96 sqrt(0.25 / 400).
    assert found["low"] == pytest.approx(0.5 - 0.049, abs=0.006)
    assert found["high"] == pytest.approx(0.5 + 0.049, abs=0.006)
    assert e.interval([float("nan")], "test") is None
