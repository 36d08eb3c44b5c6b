# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch

from verl_uae.scenes import checker
from verl_uae.scenes.render import Scene, SceneObject, all_scenes, render_float, sample_scene

RED = SceneObject("circle", "red", "large")
BLUE = SceneObject("square", "blue", "large")
TRUE = Scene("black", (RED, None, None, BLUE))


def test_reading_inverts_rendering_for_every_scene():
    scenes = list(all_scenes())[::7]
    rng = random.Random(0)
    scenes += [sample_scene(rng, object_counts=(3, 4)) for _ in range(200)]
    assert checker.read_scenes(render_float(scenes)) == scenes
    accuracy = checker.attribute_accuracy(render_float(scenes), scenes)
    assert set(accuracy.values()) == {1.0} and checker.drawn_accuracy(accuracy) == 1.0


def test_reading_survives_noise():
    scenes = list(all_scenes())[::53]
    pictures = render_float(scenes)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    assert checker.attribute_accuracy(pictures + 0.05 * noise, scenes)["scene"] > 0.99


def _scores(drawn: Scene) -> dict[str, float]:
    return checker.attribute_accuracy(render_float([drawn]), [TRUE])


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (Scene("white", (RED, None, None, BLUE)), {"background": 0.0, "scene": 0.0}),
        (Scene("black", (SceneObject("circle", "green", "large"), None, None, BLUE)), {"colour": 0.5, "scene": 0.0}),
        (Scene("black", (SceneObject("triangle", "red", "large"), None, None, BLUE)), {"shape": 0.5, "scene": 0.0}),
        (
            Scene("black", (SceneObject("circle", "red", "small"), None, None, SceneObject("square", "blue", "small"))),
            {"size": 0.0, "scene": 0.0},
        ),
        (
            Scene("black", (None, RED, None, BLUE)),
            {"position": 0.0, "colour": 0.5, "shape": 0.5, "size": 0.5, "scene": 0.0},
        ),
        (Scene("black", (RED, RED, None, BLUE)), {"position": 0.0, "scene": 0.0}),
        (
            Scene("black", (None,) * 4),
            {"position": 0.0, "colour": 0.0, "shape": 0.0, "size": 0.0, "scene": 0.0},
        ),
    ],
)
def test_each_difference_costs_exactly_its_attributes(drawn, expected):
    names = (*checker.DRAWN_ATTRIBUTES, "scene")
    assert _scores(drawn) == {**dict.fromkeys(names, 1.0), **expected}


def test_the_one_number_is_the_mean_of_five():
    accuracy = dict(zip(checker.DRAWN_ATTRIBUTES, (1.0, 0.5, 0.5, 0.0, 0.25), strict=True)) | {"scene": 0.0}
    assert checker.drawn_accuracy(accuracy) == pytest.approx(0.45)


def test_scores_are_per_picture():
    drawn = [TRUE, Scene("white", TRUE.cells)]
    scores = checker.attribute_scores(render_float(drawn), [TRUE, TRUE])
    assert scores["background"].tolist() == [1.0, 0.0] and scores["position"].tolist() == [1.0, 1.0]


def test_bad_pictures_are_refused():
    with pytest.raises(ValueError, match="expected"):
        checker.read_codes(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="finite"):
        checker.read_codes(torch.full((1, 3, 32, 32), float("nan")))
    with pytest.raises(ValueError, match="2 pictures for 1"):
        checker.attribute_scores(torch.zeros(2, 3, 32, 32), [TRUE])
    with pytest.raises(ValueError, match="without object"):
        checker.attribute_scores(torch.zeros(1, 3, 32, 32), [Scene("black", (None,) * 4)])
