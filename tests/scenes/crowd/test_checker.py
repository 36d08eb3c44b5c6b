# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch

from verl_uae.scenes.crowd.checker import hits, read_codes
from verl_uae.scenes.crowd.world import Crowd, render, sample_crowd
from verl_uae.scenes.render import OBJECTS, SceneObject
from verl_uae.seeding import normal


def test_rendered_crowds_are_read_exactly_even_with_some_noise():
    rng = random.Random(0)
    crowds = [Crowd((*OBJECTS[:16],)), Crowd((*OBJECTS[8:],))] + [sample_crowd(rng, n) for n in range(1, 17)]
    codes = torch.tensor([crowd.codes for crowd in crowds])
    picture = render(crowds)
    assert torch.equal(read_codes(picture), codes)
    assert torch.equal(read_codes(picture + 0.05 * normal(tuple(picture.shape), "test")), codes)
    assert torch.equal(read_codes(picture.where(picture < 0.9, 7.0)), codes), "values are clipped"


def test_hits_name_exactly_what_is_drawn_otherwise():
    truth = [None] * 16
    truth[:3] = [SceneObject("circle", "red", "large")] * 3
    drawn = list(truth)
    drawn[0] = SceneObject("square", "red", "large")
    drawn[1] = None
    drawn[5] = SceneObject("circle", "blue", "small")
    found = hits(render([Crowd(tuple(drawn))]), [Crowd(tuple(truth))])

    def right(name):
        return found[name][0].nonzero().flatten().tolist()

    assert right("occupied") == [i for i in range(16) if i not in (1, 5)]
    assert right("colour") == right("size") == [0, 2]
    assert right("shape") == right("object") == [2]


def test_pictures_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="expected"):
        read_codes(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="not finite"):
        read_codes(torch.full((1, 3, 32, 32), float("nan")))
    with pytest.raises(ValueError, match="1 pictures for 0 crowds"):
        hits(torch.zeros(1, 3, 32, 32), [])
