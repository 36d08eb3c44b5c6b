# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""SceneEval: the six categories of GenEval (arXiv 2310.11513), asked in the built-in world, where the check is exact.

An item is a prompt in the scenes' language and a held-out scene the prompt is true of. Drawing it in one of two ways
gives a picture, which the checker reads back:

* ``draw``: the prompt itself is drawn. This is text-to-image, what GenEval measures.
* ``loop``: the picture of the scene is captioned and the caption is drawn; the prompt asks one fact of what came back.

As in GenEval, a picture passes where the stated objects are among those it shows; `counting` asks for their exact
number. What the prompt does not state may be anything. GenEval finds objects with a detector, which errs; here the
picture is compared with every picture there is.

Shapes: B items, H = W = 32 pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from verl_uae.scenes.checker import read_scenes
from verl_uae.scenes.grammar import ParsedCaption, parse
from verl_uae.scenes.render import COLOURS, OBJECT_COUNTS, POSITIONS, SHAPES, Scene, sample_scene
from verl_uae.seeding import derive_seed

#: Items of a category; the overall score of 192 items has a standard error of at most 0.04.
ITEMS = 32

_COUNTS = (1, 2)
"""Numbers of objects asked for: those the models of the built-in world have seen."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question."""

    category: str
    prompt: str
    scene: Scene
    """Of the held-out split; the prompt is true of it."""

    def passes(self, seen: Scene) -> bool:
        """Whether a scene that was read from a picture shows what the prompt states."""
        parsed = _parsed(self.prompt)
        if self.category == "counting" and len(seen.objects) != len(parsed.objects):
            return False
        return parsed.true_of(seen)


def items(seed: int, count: int = ITEMS) -> list[Item]:
    """``count`` items of every category, in the order of `CATEGORIES`; the same for the same seed.

    Args:
        seed: names prompts and scenes.
        count: items per category, at least 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return [
        _item(category, random.Random(derive_seed(seed, "scene-eval", category, number)))
        for category in CATEGORIES
        for number in range(count)
    ]


def passed(asked: Sequence[Item], images_B3HW: torch.Tensor) -> list[bool]:
    """Which items pass, given a picture for each with values in [0, 1].

    Raises:
        ValueError: numbers of items and pictures differ, or a picture is not one of a scene.
    """
    return [item.passes(seen) for item, seen in zip(asked, read_scenes(images_B3HW), strict=True)]


def scores(asked: Sequence[Item], images_B3HW: torch.Tensor) -> dict[str, float]:
    """Share of items passed, in [0, 1]: per category, and ``overall``, the mean of the categories as in GenEval.

    Args:
        asked: the items.
        images_B3HW: a picture for each, values in [0, 1].

    Raises:
        ValueError: numbers of items and pictures differ, or a picture is not one of a scene.
    """
    by_category: dict[str, list[bool]] = {}
    for item, flag in zip(asked, passed(asked, images_B3HW), strict=True):
        by_category.setdefault(item.category, []).append(flag)
    found = {category: sum(flags) / len(flags) for category, flags in by_category.items()}
    return {**found, "overall": sum(found.values()) / len(found)}


def named(mode: str, found: Mapping[str, float]) -> dict[str, float]:
    """Scores as metrics: ``scene_eval/<mode>/<category>`` and, for the overall score, ``scene_eval/<mode>``."""
    overall = {f"scene_eval/{mode}": found["overall"]}
    return overall | {f"scene_eval/{mode}/{name}": value for name, value in found.items() if name != "overall"}


def _parsed(prompt: str) -> ParsedCaption:
    parsed = parse(prompt)
    if parsed is None:
        raise ValueError(f"{prompt!r} is not in the language of the scenes")
    return parsed


def _item(category: str, rng: random.Random) -> Item:
    prompt = CATEGORIES[category](rng)
    parsed = _parsed(prompt)
    stated = len(parsed.objects)
    # Some colours of some shapes have no held-out scene of their own, so others may stand beside the object.
    counts = [n for n in OBJECT_COUNTS if n >= stated] if category == "colors" else [stated]
    while True:
        scene = sample_scene(rng, "val", counts)
        if parsed.true_of(scene):
            return Item(category, prompt, scene)


def _single_object(rng: random.Random) -> str:
    return f"a {rng.choice(SHAPES)}"


def _two_object(rng: random.Random) -> str:
    return " and ".join(f"a {shape}" for shape in rng.sample(SHAPES, 2))


def _counting(rng: random.Random) -> str:
    return " and ".join([f"a {rng.choice(SHAPES)}"] * rng.choice(_COUNTS))


def _colors(rng: random.Random) -> str:
    return f"a {rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"


def _position(rng: random.Random) -> str:
    cells = sorted(rng.sample(range(len(POSITIONS)), 2))
    return " and ".join(f"a {POSITIONS[cell]} {rng.choice(SHAPES)}" for cell in cells)


def _color_attr(rng: random.Random) -> str:
    colours = rng.sample(list(COLOURS), 2)
    return " and ".join(f"a {colour} {shape}" for colour, shape in zip(colours, rng.sample(SHAPES, 2), strict=True))


CATEGORIES: Mapping[str, Callable[[random.Random], str]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
"""GenEval's names, each with how a prompt is made."""
