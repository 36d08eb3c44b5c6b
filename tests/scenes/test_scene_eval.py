# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from verl_uae.scenes.render import COLOURS, POSITIONS, Scene, SceneObject, render_float
from verl_uae.scenes.scene_eval import CATEGORIES, Item, items, named, scores

RED_CIRCLE, BLUE_SQUARE = SceneObject("circle", "red", "small"), SceneObject("square", "blue", "large")


@functools.cache
def asked() -> list[Item]:
    return items(7, 40)


def scene(**cells: SceneObject) -> Scene:
    return Scene("gray", tuple(cells.get(position) for position in POSITIONS))


def test_the_true_pictures_pass_every_item():
    found = scores(asked(), render_float([item.scene for item in asked()]))
    assert found == dict.fromkeys([*CATEGORIES, "overall"], 1.0)


def test_items_are_held_out_and_belong_to_their_seed():
    assert {item.scene.split for item in asked()} == {"val"}
    assert items(7, 40) == asked() and items(8, 40) != asked()
    # A larger number of items keeps the ones of a smaller number.
    assert set(items(7, 5)) <= set(asked())
    with pytest.raises(ValueError, match="count must be at least 1"):
        items(0, 0)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_asks_one_kind_of_fact(category):
    prompts = [item.prompt for item in asked() if item.category == category]
    assert len(prompts) == 40
    stated = {
        "position": all("left" in prompt or "right" in prompt for prompt in prompts),
        "colour": all(any(colour in prompt for colour in COLOURS) for prompt in prompts),
    }
    assert stated == {"position": category == "position", "colour": category in ("colors", "color_attr")}
    objects = {prompt.count(" and ") + 1 for prompt in prompts}
    assert objects == {"single_object": {1}, "colors": {1}, "counting": {1, 2}}.get(category, {2})
    # A mix-up of two attributes or shapes can only be seen where they differ.
    if category in ("two_object", "color_attr"):
        words = [[word for word in prompt.split() if word not in ("a", "and")] for prompt in prompts]
        assert all(len(set(found)) == len(found) for found in words)


@pytest.mark.parametrize(
    ("category", "prompt", "shown", "passes"),
    [
        ("single_object", "a circle", scene(topleft=RED_CIRCLE), True),
        ("single_object", "a circle", scene(topleft=BLUE_SQUARE), False),
        # GenEval lets other objects stand beside the one asked for.
        ("single_object", "a circle", scene(topleft=RED_CIRCLE, topright=BLUE_SQUARE), True),
        ("two_object", "a circle and a square", scene(topleft=BLUE_SQUARE, topright=RED_CIRCLE), True),
        ("two_object", "a circle and a square", scene(topleft=RED_CIRCLE, topright=RED_CIRCLE), False),
        ("counting", "a circle", scene(topleft=RED_CIRCLE), True),
        ("counting", "a circle", scene(topleft=RED_CIRCLE, topright=RED_CIRCLE), False),
        ("counting", "a circle and a circle", scene(topleft=RED_CIRCLE), False),
        ("colors", "a red circle", scene(topleft=RED_CIRCLE), True),
        ("colors", "a red circle", scene(topleft=replace(RED_CIRCLE, colour="green")), False),
        (
            "position",
            "a topleft circle and a topright square",
            scene(topleft=RED_CIRCLE, topright=BLUE_SQUARE),
            True,
        ),
        (
            "position",
            "a topleft circle and a topright square",
            scene(topleft=BLUE_SQUARE, topright=RED_CIRCLE),
            False,
        ),
        ("color_attr", "a red circle and a blue square", scene(topleft=BLUE_SQUARE, topright=RED_CIRCLE), True),
        # The colours are there, on the wrong objects.
        (
            "color_attr",
            "a red circle and a blue square",
            scene(topleft=replace(BLUE_SQUARE, colour="red"), topright=replace(RED_CIRCLE, colour="blue")),
            False,
        ),
    ],
)
def test_what_passes(category, prompt, shown, passes):
    assert Item(category, prompt, shown).passes(shown) is passes
    assert scores([Item(category, prompt, shown)], render_float([shown]))["overall"] == float(passes)


def test_the_overall_score_is_the_mean_of_categories_not_of_items():
    right, wrong = scene(topleft=RED_CIRCLE), scene(topleft=BLUE_SQUARE)
    asked = [Item("single_object", "a circle", right)] * 3 + [Item("colors", "a red circle", right)]
    found = scores(asked, render_float([right, right, wrong, right]))
    assert found == {"single_object": pytest.approx(2 / 3), "colors": 1.0, "overall": pytest.approx(5 / 6)}
    assert named("draw", found) == {
        "scene_eval/draw": found["overall"],
        "scene_eval/draw/single_object": found["single_object"],
        "scene_eval/draw/colors": 1.0,
    }


def test_a_missing_picture_is_an_error():
    with pytest.raises(ValueError):
        scores(asked()[:2], render_float([asked()[0].scene]))


def test_noise_passes_next_to_nothing():
    noise = torch.rand(len(asked()), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = scores(asked(), noise)
    assert found["color_attr"] == found["position"] == 0.0 and found["overall"] < 0.2
