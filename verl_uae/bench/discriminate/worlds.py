# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The two sets of pictures and what is done to them: built-in scenes, and a folder of photographs.

Shape legend: D the picture itself and its damaged versions, 3 colour channels, H = W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_uae.bench.discriminate.corruptions import (
    PHOTOGRAPH_NUISANCES,
    PHOTOGRAPH_SEMANTICS,
    SCENE_NUISANCES,
    Corruption,
    Draw,
)
from verl_uae.bench.discriminate.scenes import KINDS, OBJECTS, damaged_scenes, draw_scenes
from verl_uae.bench.pairs import image_files, key_of
from verl_uae.data.images import decode_image, image_digest, to_tensor
from verl_uae.errors import ConfigError
from verl_uae.scenes.render import IMAGE_SIZE, Scene, render_float


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of damage."""

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
    kinds: tuple[Kind, ...]
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
        drawn = render_float([scenes[place], *(scene for kind in KINDS for scene in damaged[kind])])
        draw = Draw(seed, scenes[place].digest, render_float([others[place]])[0])
        return torch.cat([drawn, _apply(SCENE_NUISANCES, drawn[0], draw)])

    objects = tuple(range(1, OBJECTS + 1))
    exact = (Kind(name, objects[1:] if name == "swapped" else objects, "objects", True) for name in KINDS)
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


def _kinds(corruptions: tuple[Corruption, ...], *, semantic: bool, counted_from: int = 0) -> tuple[Kind, ...]:
    return tuple(Kind(kind.name, kind.levels, kind.unit, semantic, counted_from) for kind in corruptions)


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
