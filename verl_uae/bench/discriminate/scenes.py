# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Graded damage of the built-in scenes, exact: the damaged scene is drawn, nothing is retouched.

A level is the number of objects concerned, of four. The objects are taken in one drawn order, so a heavier level
includes the lighter ones; only exchanged places cannot be nested (one object alone cannot change places).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from verl_uae.scenes.render import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, SceneObject
from verl_uae.seeding import derive_seed

OBJECTS = 4

Cells = list[SceneObject | None]


def draw_scenes(count: int, seed: int) -> list[Scene]:
    """Different scenes of four different objects."""
    rng = random.Random(derive_seed(seed, "discrimination scenes"))
    objects = [SceneObject(shape, colour, size) for shape in SHAPES for colour in COLOURS for size in SIZES]
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = Scene(rng.choice(list(BACKGROUNDS)), tuple(rng.sample(objects, OBJECTS)))
        found[scene.digest] = scene
    return list(found.values())


def damaged_scenes(scene: Scene, other: Scene, seed: int) -> dict[str, list[Scene]]:
    """By kind, lightest level first.

    Args:
        scene: with four objects.
        other: a scene whose objects and background are put in its place.
        seed: of the order of the objects and of the new attributes.
    """
    rng = random.Random(derive_seed(seed, "scene damage", scene.digest))
    order = rng.sample(range(OBJECTS), OBJECTS)
    found = {
        kind: [_changed(scene, order[:count], change, seed) for count in range(1, OBJECTS + 1)]
        for kind, change in _CHANGES.items()
    }
    found["swapped"] = [Scene(scene.background, tuple(_moved(scene, order, move))) for move in _MOVES]
    found["replaced"] = [_replaced(scene, other, order[:count]) for count in range(1, OBJECTS)]
    found["replaced"].append(other)
    return found


def _without(thing: SceneObject, rng: random.Random) -> SceneObject | None:
    return None


def _recoloured(thing: SceneObject, rng: random.Random) -> SceneObject | None:
    return replace(thing, colour=rng.choice([name for name in COLOURS if name != thing.colour]))


def _resized(thing: SceneObject, rng: random.Random) -> SceneObject | None:
    return replace(thing, size=next(name for name in SIZES if name != thing.size))


def _reshaped(thing: SceneObject, rng: random.Random) -> SceneObject | None:
    return replace(thing, shape=rng.choice([name for name in SHAPES if name != thing.shape]))


_CHANGES: Mapping[str, Callable[[SceneObject, random.Random], SceneObject | None]] = {
    "removed": _without,
    "recoloured": _recoloured,
    "resized": _resized,
    "reshaped": _reshaped,
}

#: Where the objects of the drawn order go: two exchanged, three in a ring, two times two exchanged.
_MOVES = ((1, 0, 2, 3), (1, 2, 0, 3), (1, 0, 3, 2))

KINDS = (*_CHANGES, "swapped", "replaced")


def _changed(
    scene: Scene, places: list[int], change: Callable[[SceneObject, random.Random], SceneObject | None], seed: int
) -> Scene:
    cells: Cells = list(scene.cells)
    for place in places:
        thing = cells[place]
        assert thing is not None
        cells[place] = change(thing, random.Random(derive_seed(seed, "scene change", scene.digest, place)))
    return Scene(scene.background, tuple(cells))


def _moved(scene: Scene, order: list[int], move: tuple[int, ...]) -> Cells:
    cells: Cells = list(scene.cells)
    for index, target in enumerate(move):
        cells[order[target]] = scene.cells[order[index]]
    return cells


def _replaced(scene: Scene, other: Scene, places: list[int]) -> Scene:
    return Scene(scene.background, tuple(other.cells[i] if i in places else scene.cells[i] for i in range(OBJECTS)))
