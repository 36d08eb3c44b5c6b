# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The two sets of pictures and what is done to them: built-in scenes, and a folder of photographs.

Semantic damage of the scenes is exact: the damaged scene is drawn, nothing is retouched. Its level is the number of
objects concerned, of four. The objects are taken in one drawn order, so a heavier level includes the lighter ones; only
exchanged places cannot be nested (one object alone cannot change places).

Shape legend: D the picture itself and its damaged versions, 3 colour channels, H = W pixels.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verl_uae.bench.discriminate.corruptions import (
    PHOTOGRAPH_NUISANCES,
    PHOTOGRAPH_SEMANTICS,
    SCENE_NUISANCES,
    Corruption,
    Draw,
)
from verl_uae.bench.pairs import image_files, key_of
from verl_uae.data.images import decode_image, image_digest, to_tensor
from verl_uae.errors import ConfigError
from verl_uae.scenes.render import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, SIZES, Scene, SceneObject, render_float
from verl_uae.seeding import derive_seed

OBJECTS = 4

Cells = list[SceneObject | None]


@dataclass(frozen=True, slots=True)
class Damage:
    """A kind of damage, and how it counts."""

    name: str
    levels: tuple[float, ...]
    unit: str
    semantic: bool
    """Whether it changes what the picture shows, not how."""
    counted_from: int = 0
    """First level (zero-based) that counts as semantic damage in the comparison across kinds."""


@dataclass(frozen=True, slots=True)
class World:
    """Pictures and their damaged versions."""

    name: str
    side: int
    kinds: tuple[Damage, ...]
    pictures: tuple[str, ...]
    """Names."""
    digests: tuple[str, ...]
    """SHA-256 per picture, of the file's pixels or of the scene."""
    versions: Callable[[int], Tensor]
    """Of the picture at a place: (D, 3, H, W) in [0, 1], the picture first, then level by level, kind by kind."""

    def columns(self) -> dict[str, list[int]]:
        """Places of a kind's levels along D."""
        found, place = {}, 1
        for kind in self.kinds:
            found[kind.name] = list(range(place, place + len(kind.levels)))
            place += len(kind.levels)
        return found


def scene_world(count: int, seed: int) -> World:
    """Built-in scenes of four objects, 32 pixels.

    Raises:
        ConfigError: fewer than 20 scenes; among so few a scene may find no other that differs everywhere.
    """
    if count < 20:
        raise ConfigError("--scenes", f"must be at least 20, got {count}")
    scenes = draw_scenes(count, seed)
    others = [_unlike(scenes, place) for place in range(count)]

    def versions(place: int) -> Tensor:
        damaged = damaged_scenes(scenes[place], others[place], seed)
        drawn = render_float([scenes[place], *(scene for kind in SCENE_SEMANTICS for scene in damaged[kind])])
        draw = Draw(seed, scenes[place].digest, render_float([others[place]])[0])
        return torch.cat([drawn, _apply(SCENE_NUISANCES, drawn[0], draw)])

    objects = tuple(range(1, OBJECTS + 1))
    exact = (Damage(name, objects[1:] if name == "swapped" else objects, "objects", True) for name in SCENE_SEMANTICS)
    digests = tuple(scene.digest for scene in scenes)
    kinds = (*exact, *_kinds(SCENE_NUISANCES, semantic=False))
    return World("scenes", IMAGE_SIZE, kinds, tuple(f"scene {digest[:8]}" for digest in digests), digests, versions)


def photograph_world(folder: str | os.PathLike[str], side: int, seed: int) -> World:
    """The photographs of a folder, scaled to cover a square and cut in the centre.

    Raises:
        ConfigError: no folder, fewer than two pictures, or a side below 32 pixels.
        DecodeError: a picture cannot be read.
    """
    if side < 32:
        raise ConfigError("--size", f"must be at least 32 pixels, got {side}")
    files = image_files(folder)
    if len(files) < 2:
        raise ConfigError("--photographs", f"needs at least two pictures, {folder} has {len(files)}")
    decoded = [decode_image(path) for path in files]
    images_N3HW, digests = to_tensor(decoded, side), tuple(image_digest(img) for img in decoded)

    def versions(place: int) -> Tensor:
        other = images_N3HW[(place + len(files) // 2) % len(files)]
        damaged = _apply(
            (*PHOTOGRAPH_SEMANTICS, *PHOTOGRAPH_NUISANCES), images_N3HW[place], Draw(seed, digests[place], other)
        )
        return torch.cat([images_N3HW[place][None], damaged])

    # A patch of an eighth of the side may hold nothing but sky: it counts as semantic damage from the second level.
    semantic = _kinds(PHOTOGRAPH_SEMANTICS, semantic=True, counted_from=1)
    names = tuple(key_of(path, folder) for path in files)
    return World(
        "photographs", side, (*semantic, *_kinds(PHOTOGRAPH_NUISANCES, semantic=False)), names, digests, versions
    )


def _apply(corruptions: tuple[Corruption, ...], image_3HW: Tensor, draw: Draw) -> Tensor:
    return torch.stack([kind.apply(image_3HW, level, draw) for kind in corruptions for level in kind.levels])


def _kinds(corruptions: tuple[Corruption, ...], *, semantic: bool, counted_from: int = 0) -> tuple[Damage, ...]:
    return tuple(Damage(kind.name, kind.levels, kind.unit, semantic, counted_from) for kind in corruptions)


def _unlike(scenes: list[Scene], place: int) -> Scene:
    """The next scene with another background and another object at every place."""
    scene = scenes[place]
    for step in range(1, len(scenes)):
        other = scenes[(place + step) % len(scenes)]
        if other.background != scene.background and all(
            theirs != ours for theirs, ours in zip(other.cells, scene.cells, strict=True)
        ):
            return other
    raise ConfigError("--scenes", "too few: a scene finds no other that differs everywhere")


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

SCENE_SEMANTICS = (*_CHANGES, "swapped", "replaced")


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
