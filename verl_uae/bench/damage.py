# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The two sets of pictures and what is done to them: built-in scenes, and a folder of photographs.

Semantic damage of the scenes is exact: the damaged scene is drawn, nothing is retouched. Its level is the number of
objects concerned, of four. The objects are taken in one drawn order, so a heavier level includes the lighter ones; only
exchanged places cannot be nested (one object alone cannot change places).

All other damage is a pure function of picture, level and a named draw. Lengths are fractions of the picture's side, so
a level means the same at every size. The levels of one kind differ in that number alone: place, direction, noise and
the other picture are drawn once per picture and kind.

Shape legend: D the picture itself and its damaged versions, 3 colour channels, H = W = side in pixels.
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from verl_uae.bench.pairs import image_files, key_of
from verl_uae.data.images import decode_image, image_digest, to_tensor
from verl_uae.errors import ConfigError
from verl_uae.scenes.render import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, SIZES, Scene, SceneObject, render_float
from verl_uae.seeding import derive_seed, generator, normal

OBJECTS = 4

#: What changes of an object, and to what, by kind of damage of the scenes; nothing is left of one that is removed.
_ATTRIBUTES = {"removed": "", "recoloured": "colour", "resized": "size", "reshaped": "shape"}
_VALUES = {"colour": tuple(COLOURS), "size": tuple(SIZES), "shape": tuple(SHAPES)}

#: Where the objects of the drawn order go: two exchanged, three in a ring, two times two exchanged.
_MOVES = ((1, 0, 2, 3), (1, 2, 0, 3), (1, 0, 3, 2))

SCENE_SEMANTICS = (*_ATTRIBUTES, "swapped", "replaced")


@dataclass(frozen=True, slots=True)
class Damage:
    """A kind of damage and its levels, lightest first."""

    name: str
    levels: tuple[float, ...]
    unit: str
    """What a level counts."""
    semantic: bool = False
    """Whether it changes what the picture shows, not how."""
    counted_from: int = 0
    """First level (zero-based) that counts as semantic damage in the comparison across kinds."""
    apply: Callable[[Tensor, float, Draw], Tensor] = lambda image_3HW, level, draw: image_3HW
    """Damages pixels: (picture in [0, 1] of shape (3, H, W), level, draw) to the same shape and range; nothing where
    another scene is drawn instead."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decides, by name."""

    seed: int
    picture: str
    """Name of the picture."""
    other_3HW: Tensor
    """Another picture of the same size."""

    def uniform(self, kind: str, count: int) -> list[float]:
        """Numbers in [0, 1)."""
        drawn: list[float] = torch.rand(count, generator=generator(self.seed, "damage", kind, self.picture)).tolist()
        return drawn

    def sign(self, kind: str) -> float:
        """1 or -1."""
        return 1.0 if self.uniform(kind, 1)[0] < 0.5 else -1.0


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
    names = tuple(f"scene {digest[:8]}" for digest in digests)
    return World("scenes", IMAGE_SIZE, (*exact, *SCENE_NUISANCES), names, digests, versions)


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
    images_N3HW, digests = to_tensor(decoded, side), tuple(map(image_digest, decoded))
    kinds = (*PHOTOGRAPH_SEMANTICS, *PHOTOGRAPH_NUISANCES)

    def versions(place: int) -> Tensor:
        draw = Draw(seed, digests[place], images_N3HW[(place + len(files) // 2) % len(files)])
        return torch.cat([images_N3HW[place][None], _apply(kinds, images_N3HW[place], draw)])

    return World("photographs", side, kinds, tuple(key_of(path, folder) for path in files), digests, versions)


def _apply(kinds: tuple[Damage, ...], image_3HW: Tensor, draw: Draw) -> Tensor:
    return torch.stack([kind.apply(image_3HW, level, draw) for kind in kinds for level in kind.levels])


def _unlike(scenes: list[Scene], place: int) -> Scene:
    """The next scene with another background and another object at every place."""
    scene = scenes[place]
    for other in (*scenes[place + 1 :], *scenes[:place]):
        pairs = zip(other.cells, scene.cells, strict=True)
        if other.background != scene.background and all(theirs != ours for theirs, ours in pairs):
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
    """By kind, lightest level first; at the end of ``replaced`` is the other scene. All have four objects."""
    order = random.Random(derive_seed(seed, "scene damage", scene.digest)).sample(range(OBJECTS), OBJECTS)

    def changed(cells: dict[int, SceneObject | None]) -> Scene:
        return Scene(scene.background, tuple(cells.get(place, thing) for place, thing in enumerate(scene.cells)))

    found = {
        kind: [
            changed({place: _altered(scene, place, name, seed) for place in order[:count]})
            for count in range(1, OBJECTS + 1)
        ]
        for kind, name in _ATTRIBUTES.items()
    }
    found["swapped"] = [
        changed({order[target]: scene.cells[order[index]] for index, target in enumerate(move)}) for move in _MOVES
    ]
    replaced = [changed({place: other.cells[place] for place in order[:count]}) for count in range(1, OBJECTS)]
    return {**found, "replaced": [*replaced, other]}


def _altered(scene: Scene, place: int, name: str, seed: int) -> SceneObject | None:
    """An object of a scene with another value of an attribute; None if none is named."""
    thing = scene.cells[place]
    assert thing is not None
    if not name:
        return None
    rng = random.Random(derive_seed(seed, "scene change", scene.digest, place))
    return replace(thing, **{name: rng.choice([value for value in _VALUES[name] if value != getattr(thing, name)])})


def blur(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """Gaussian blur; level: standard deviation, fraction of the side. Borders reflect."""
    from torchvision.transforms.functional import gaussian_blur

    sigma = level * image_3HW.shape[-1]
    blurred: Tensor = gaussian_blur(image_3HW, 2 * math.ceil(3 * sigma) + 1, sigma)
    return blurred


def noise(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """White Gaussian noise, cut to [0, 1]; level: standard deviation."""
    grain_3HW = normal(tuple(image_3HW.shape), draw.seed, "damage", "noise", draw.picture)
    return (image_3HW + level * grain_3HW).clamp(0.0, 1.0)


def jpeg(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """JPEG with 4:2:0 chroma; level: 100 minus the quality."""
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    buffer = io.BytesIO()
    picture = to_pil_image((image_3HW * 255.0).round().to(torch.uint8))
    picture.save(buffer, "JPEG", quality=int(100 - level), subsampling=2)
    return pil_to_tensor(Image.open(buffer)).float() / 255.0


def hue(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """All hues turned, in a drawn direction; level: fraction of the colour circle, at most 0.5."""
    from torchvision.transforms.functional import adjust_hue

    turned: Tensor = adjust_hue(image_3HW, draw.sign("hue") * level)
    return turned.clamp(0.0, 1.0)


def shift(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """Moved left or right; level: fraction of the side. What comes in is the mirror image of the border."""
    side = image_3HW.shape[-1]
    pixels = max(1, round(level * side))
    padded = F.pad(image_3HW[None], (pixels, pixels, 0, 0), mode="reflect")[0]
    start = pixels + int(draw.sign("shift")) * pixels
    return padded[:, :, start : start + side]


def removed(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """A square filled with the mean colour of the pixels around it; level: its side, fraction of the picture's.

    Its centre lies in the middle half of the picture, the same at all levels.
    """
    side = image_3HW.shape[-1]
    half = max(1, round(0.5 * level * side))
    y, x = (round((0.25 + 0.5 * number) * side) for number in draw.uniform("removed", 2))
    inner, outer = _box(y, x, half, side), _box(y, x, half + max(1, side // 32), side)
    ring_HW = torch.zeros(side, side, dtype=torch.bool)
    ring_HW[outer], ring_HW[inner] = True, False
    damaged_3HW = image_3HW.clone()
    damaged_3HW[(slice(None), *inner)] = image_3HW[:, ring_HW].mean(dim=1)[:, None, None]
    return damaged_3HW


def swapped(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """A square of the left half and one of the right half exchanged; level: their side, fraction, at most 0.5."""
    side = image_3HW.shape[-1]
    length = max(1, round(level * side))
    left, right = (
        _corner((0.25 + 0.5 * number) * side, place * side, length, side)
        for number, place in zip(draw.uniform("swapped", 2), (0.25, 0.75), strict=True)
    )
    damaged_3HW = image_3HW.clone()
    damaged_3HW[(slice(None), *left)] = image_3HW[(slice(None), *right)]
    damaged_3HW[(slice(None), *right)] = image_3HW[(slice(None), *left)]
    return damaged_3HW


def replaced(image_3HW: Tensor, level: float, draw: Draw) -> Tensor:
    """The central square taken from another picture; level: its side, fraction. 1 is the whole other picture."""
    side = image_3HW.shape[-1]
    length = max(1, round(level * side))
    centre = _corner(0.5 * side, 0.5 * side, length, side)
    damaged_3HW = image_3HW.clone()
    damaged_3HW[(slice(None), *centre)] = draw.other_3HW[(slice(None), *centre)]
    return damaged_3HW


def _box(y: int, x: int, half: int, side: int) -> tuple[slice, slice]:
    return slice(max(0, y - half), min(side, y + half)), slice(max(0, x - half), min(side, x + half))


def _corner(y: float, x: float, length: int, side: int) -> tuple[slice, slice]:
    """The square of a length around a point, moved inside the picture."""
    top, left = (min(max(round(centre - 0.5 * length), 0), side - length) for centre in (y, x))
    return slice(top, top + length), slice(left, left + length)


#: Of photographs. Blur and shift at 256 pixels: 0.5 to 4 and 2 to 51 pixels.
BLUR = Damage("blur", (1 / 512, 1 / 256, 1 / 128, 1 / 64), "standard deviation / side", apply=blur)
NOISE = Damage("noise", (0.02, 0.05, 0.1, 0.2), "standard deviation of pixels in [0, 1]", apply=noise)
JPEG = Damage("jpeg", (25, 60, 85, 95), "100 - quality", apply=jpeg)
HUE = Damage("hue", (0.02, 0.05, 0.12, 0.3), "fraction of the colour circle", apply=hue)
SHIFT = Damage("shift", (1 / 128, 1 / 32, 1 / 12, 1 / 5), "fraction of the side", apply=shift)
REMOVED = Damage("removed", (1 / 8, 1 / 4, 3 / 8, 1 / 2), "side of the patch / side", True, 1, removed)
SWAPPED = Damage("swapped", (1 / 8, 1 / 4, 3 / 8, 1 / 2), "side of the regions / side", True, 1, swapped)
REPLACED = Damage("replaced", (1 / 4, 1 / 2, 3 / 4, 1.0), "side of the other picture's part / side", True, 1, replaced)

#: A patch of an eighth of the side may hold nothing but sky: it counts as semantic damage from the second level.
PHOTOGRAPH_SEMANTICS = (REMOVED, SWAPPED, REPLACED)
PHOTOGRAPH_NUISANCES = (BLUR, NOISE, JPEG, HUE, SHIFT)

#: Of the 32-pixel scenes: blur of 0.4 to 2 pixels, shift of 1 to 4.
SCENE_NUISANCES = (
    replace(BLUR, levels=(0.4 / 32, 0.7 / 32, 1.2 / 32, 2 / 32)),
    NOISE,
    JPEG,
    HUE,
    replace(SHIFT, levels=(1 / 32, 2 / 32, 3 / 32, 4 / 32)),
)
