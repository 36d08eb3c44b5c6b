# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Scenes of the built-in world and their pictures.

A scene is a background and a 2x2 grid of cells, each empty or holding one centred object with a shape, a colour and a
size. A picture is 32x32 RGB, drawn eight times larger and box-averaged, so edges are anti-aliased but every picture is
an exact mosaic of 75 cell pictures (3 backgrounds x (empty + 24 objects)). That makes rendering a table look-up.

Shapes: B batch, N cells (4), H = W = 32 pixels, h = w = 16 pixels of a cell.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw

SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 210, 40),
}
SIZES: dict[str, float] = {"small": 4.0, "large": 7.0}
"""Radius in pixels."""
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (245,) * 3, "gray": (128,) * 3, "black": (20,) * 3}
POSITIONS: tuple[str, ...] = ("topleft", "topright", "bottomleft", "bottomright")
"""Names of the cells in reading order: row-major, index = 2 * row + column."""

CELL_SIZE = 16
IMAGE_SIZE = 2 * CELL_SIZE
SPLITS: tuple[str, ...] = ("train", "val")
OBJECT_COUNTS: tuple[int, ...] = (1, 2)
"""Numbers of objects of the default world, all equally likely."""

_OVERSAMPLING = 8
_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object. Raises ``ValueError`` for a name that is not in `SHAPES`, `COLOURS` or `SIZES`."""

    shape: str
    colour: str
    size: str

    def __post_init__(self) -> None:
        for name, value, known in (
            ("shape", self.shape, SHAPES),
            ("colour", self.colour, COLOURS),
            ("size", self.size, SIZES),
        ):
            if value not in known:
                raise ValueError(f"SceneObject.{name} is {value!r}, not one of {list(known)}")


OBJECTS: tuple[SceneObject, ...] = tuple(SceneObject(s, c, z) for c in COLOURS for s in SHAPES for z in SIZES)
"""All 24 objects; a cell code is 0 for an empty cell and 1 + the index in this tuple otherwise."""
_CELL_CODE: dict[SceneObject | None, int] = {None: 0, **{obj: 1 + i for i, obj in enumerate(OBJECTS)}}


@dataclass(frozen=True)
class Scene:
    """A background name and four cells in the order of `POSITIONS`, each an object or None.

    Raises ``ValueError`` for an unknown background or a number of cells other than four.
    """

    background: str
    cells: tuple[SceneObject | None, ...]

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"Scene.background is {self.background!r}, not one of {list(BACKGROUNDS)}")
        if len(self.cells) != len(POSITIONS):
            raise ValueError(f"Scene.cells has {len(self.cells)} entries, expected {len(POSITIONS)}")

    @property
    def objects(self) -> tuple[tuple[str, SceneObject], ...]:
        """Occupied cells in reading order as (position name, object)."""
        return tuple((p, obj) for p, obj in zip(POSITIONS, self.cells, strict=True) if obj is not None)

    @property
    def codes(self) -> tuple[int, ...]:
        """(background index, cell code x 4), the row of integers that `render_batch` and the checker use."""
        return (list(BACKGROUNDS).index(self.background), *(_CELL_CODE[obj] for obj in self.cells))

    @cached_property
    def split(self) -> str:
        """One scene in ten is of split "val", by SHA-256 of the canonical JSON; the others are of "train"."""
        return "val" if int(self.digest[:16], 16) % _HELD_OUT_ONE_IN == 0 else "train"

    @property
    def digest(self) -> str:
        """Hex SHA-256 of `to_json`; the same on every platform and Python version."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, objects in reading order."""
        objects = [{"position": p, "shape": o.shape, "colour": o.colour, "size": o.size} for p, o in self.objects]
        return json.dumps({"background": self.background, "objects": objects}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_codes(cls, codes: Sequence[int]) -> Scene:
        """Inverse of `codes`."""
        background, *cells = (int(c) for c in codes)
        return cls(list(BACKGROUNDS)[background], tuple(OBJECTS[c - 1] if c else None for c in cells))


def sample_scene(rng: random.Random, split: str = "train", object_counts: Sequence[int] = OBJECT_COUNTS) -> Scene:
    """Draw one scene of a split: uniform number of objects, then uniform among the split's scenes of that number.

    Args:
        rng: the only source of randomness.
        split: "train" or "val".
        object_counts: the equally likely numbers of objects, each 1..4.

    Raises:
        ValueError: unknown split, or a number of objects that does not fit in four cells.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {list(SPLITS)}")
    if not object_counts or not all(1 <= n <= len(POSITIONS) for n in object_counts):
        raise ValueError(f"object_counts must be numbers from 1 to {len(POSITIONS)}, got {list(object_counts)}")
    count = rng.choice(object_counts)
    while True:
        occupied = rng.sample(range(len(POSITIONS)), count)
        cells: list[SceneObject | None] = [None] * len(POSITIONS)
        for index in occupied:
            cells[index] = rng.choice(OBJECTS)
        scene = Scene(rng.choice(list(BACKGROUNDS)), tuple(cells))
        if scene.split == split:
            return scene


def all_scenes(object_counts: Iterable[int] = OBJECT_COUNTS) -> Iterator[Scene]:
    """Every scene of a world once: 288 with one object, 10,368 with two."""
    for count in sorted(set(object_counts)):
        for occupied in itertools.combinations(range(len(POSITIONS)), count):
            for objects in itertools.product(OBJECTS, repeat=count):
                placed = dict(zip(occupied, objects, strict=True))
                cells = tuple(placed.get(i) for i in range(len(POSITIONS)))
                for background in BACKGROUNDS:
                    yield Scene(background, cells)


def render(scene: Scene) -> np.ndarray:
    """Picture of a scene, uint8 (32, 32, 3) in 0..255."""
    return render_batch([scene])[0].permute(1, 2, 0).numpy()


def render_image(scene: Scene) -> Image.Image:
    """Picture of a scene as a 32x32 RGB `PIL.Image`."""
    return Image.fromarray(render(scene))


def render_batch(scenes: Sequence[Scene]) -> torch.Tensor:
    """Pictures of scenes, uint8 (B, 3, 32, 32) in 0..255, the very pixels that `render` gives."""
    return render_codes(scene_codes(scenes))


def render_float(scenes: Sequence[Scene]) -> torch.Tensor:
    """Pictures of scenes, float32 (B, 3, 32, 32) in [0, 1]."""
    return render_batch(scenes).float() / 255.0


def scene_codes(scenes: Sequence[Scene]) -> torch.Tensor:
    """Integer codes of scenes, int64 (B, 5): background index, then the four cell codes."""
    return torch.tensor([scene.codes for scene in scenes], dtype=torch.long).reshape(-1, 1 + len(POSITIONS))


def render_codes(codes_B5: torch.Tensor) -> torch.Tensor:
    """Pictures of `scene_codes` rows, uint8 (B, 3, 32, 32)."""
    cells = cell_templates()[codes_B5[:, :1], codes_B5[:, 1:]]
    grid = cells.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).contiguous()


@lru_cache(maxsize=1)
def cell_templates() -> torch.Tensor:
    """The cell pictures, uint8 (3 backgrounds, 25 cell codes, 3, 16, 16)."""
    rows = [[_draw_cell(colour, obj) for obj in (None, *OBJECTS)] for colour in BACKGROUNDS.values()]
    return torch.from_numpy(np.asarray(rows)).permute(0, 1, 4, 2, 3).contiguous()


def _draw_cell(background: tuple[int, int, int], obj: SceneObject | None) -> np.ndarray:
    side = CELL_SIZE * _OVERSAMPLING
    image = Image.new("RGB", (side, side), background)
    if obj is not None:
        _draw_shape(ImageDraw.Draw(image), obj, centre=side / 2, radius=SIZES[obj.size] * _OVERSAMPLING)
    return np.asarray(image.resize((CELL_SIZE, CELL_SIZE), Image.Resampling.BOX))


def _draw_shape(draw: ImageDraw.ImageDraw, obj: SceneObject, centre: float, radius: float) -> None:
    fill, c, r = COLOURS[obj.colour], centre, radius
    if obj.shape == "circle":
        draw.ellipse([c - r, c - r, c + r, c + r], fill=fill)
    elif obj.shape == "square":
        # PIL's corners are inclusive. Side 2 r, not 1.8 r: a small square of a circle's area is hardly told from it.
        draw.rectangle([c - r, c - r, c + r - 1, c + r - 1], fill=fill)
    else:
        draw.polygon([(c, c - r), (c - r, c + 0.85 * r), (c + r, c + 0.85 * r)], fill=fill)
