# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Crowds: a 4x4 grid of cells, up to sixteen objects, one sentence of ten words for each; and how they are read back.

A cell is 8x8 pixels: the 16x16 cell of `verl_uae.scenes.render` on white, at half the scale. The caption names the
objects in random order. In reading order a cut would always lose the lower rows, and what was lost could not be told
from where it stood.

    caption  := sentence+
    sentence := "row" NUMBER "column" NUMBER "holds a" SIZE COLOUR SHAPE "."

A picture is read cell by cell: each is its nearest cell picture, by squared distance.

Shapes: B batch, N cells (16), P numbers of a cell picture (3 * 8 * 8), H = W = 32 pixels.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch.nn import functional as F

from verl_uae.scenes.checker import attribute_table, cell_pixels
from verl_uae.scenes.render import BACKGROUNDS, COLOURS, OBJECTS, SHAPES, SIZES, SPLITS, SceneObject, cell_templates

GRID = 4
CELL_SIZE = 8
IMAGE_SIZE = GRID * CELL_SIZE
NUMBERS: tuple[str, ...] = ("one", "two", "three", "four")
CELLS: tuple[str, ...] = tuple(f"row {row} column {column}" for row in NUMBERS for column in NUMBERS)
"""Names of the cells in reading order."""
WORDS: tuple[str, ...] = ("row", "column", "holds", "a", ".", *NUMBERS, *SIZES, *COLOURS, *SHAPES)
"""All words of the language; each is one token."""
SENTENCE_WORDS = 10
ATTRIBUTES: tuple[str, ...] = ("occupied", "colour", "size", "shape", "object")
"""What `hits` tells of a cell."""

_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Crowd:
    """Cells in the order of `CELLS`, each an object or None.

    Raises ``ValueError`` for another number of cells, and for a crowd without objects (it has no caption).
    """

    cells: tuple[SceneObject | None, ...]

    def __post_init__(self) -> None:
        if len(self.cells) != len(CELLS):
            raise ValueError(f"Crowd.cells has {len(self.cells)} entries, expected {len(CELLS)}")
        if not any(self.cells):
            raise ValueError("a crowd without objects has no caption")

    @property
    def objects(self) -> dict[str, SceneObject]:
        """Object by name of its cell, in reading order."""
        return {name: obj for name, obj in zip(CELLS, self.cells, strict=True) if obj is not None}

    @property
    def codes(self) -> tuple[int, ...]:
        """Per cell 0 when empty, else 1 + the index in `verl_uae.scenes.render.OBJECTS`."""
        return tuple(0 if obj is None else 1 + OBJECTS.index(obj) for obj in self.cells)

    @cached_property
    def split(self) -> str:
        """One crowd in ten is of split "val", by SHA-256 of its codes; the others are of "train"."""
        digest = hashlib.sha256(bytes(self.codes)).hexdigest()
        return "val" if int(digest[:16], 16) % _HELD_OUT_ONE_IN == 0 else "train"


def sample_crowd(rng: random.Random, count: int, split: str = "train") -> Crowd:
    """Draw one crowd of a split, uniformly among those with `count` objects.

    Raises:
        ValueError: unknown split, or a count that is not from 1 to 16.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {list(SPLITS)}")
    if not 1 <= count <= len(CELLS):
        raise ValueError(f"count must be from 1 to {len(CELLS)}, got {count}")
    while True:
        occupied = set(rng.sample(range(len(CELLS)), count))
        crowd = Crowd(tuple(rng.choice(OBJECTS) if i in occupied else None for i in range(len(CELLS))))
        if crowd.split == split:
            return crowd


def caption(crowd: Crowd, rng: random.Random) -> str:
    """Write every object of a crowd, in random order; ten words each."""
    objects = list(crowd.objects.items())
    rng.shuffle(objects)
    return " ".join(_sentence(name, obj) for name, obj in objects)


def cut(text: str, tokens: int) -> str:
    """The first tokens of a caption; a sentence may be left unfinished."""
    return " ".join(text.split(" ")[:tokens])


def mentioned(text: str) -> dict[str, SceneObject]:
    """Objects of the complete sentences of a caption or of a cut one, in the order of the caption.

    Raises:
        ValueError: it is not a beginning of a caption, or names a cell twice.
    """
    words = text.split(" ")
    found: dict[str, SceneObject] = {}
    for start in range(0, len(words), SENTENCE_WORDS):
        sentence = words[start : start + SENTENCE_WORDS]
        if len(sentence) < SENTENCE_WORDS:
            break
        name, (size, colour, shape) = " ".join(sentence[:4]), sentence[6:9]
        obj = SceneObject(shape, colour, size)
        if name not in CELLS or name in found or " ".join(sentence) != _sentence(name, obj):
            raise ValueError(f"not a caption of a crowd: {' '.join(sentence)!r}")
        found[name] = obj
    return found


def _sentence(name: str, obj: SceneObject) -> str:
    return f"{name} holds a {obj.size} {obj.colour} {obj.shape} ."


@lru_cache(maxsize=1)
def templates() -> torch.Tensor:
    """The cell pictures, float32 (25 cell codes, 3, 8, 8) in [0, 1]."""
    return F.avg_pool2d(cell_templates()[list(BACKGROUNDS).index("white")].float() / 255, 2)


def render(crowds: Sequence[Crowd]) -> torch.Tensor:
    """Pictures of crowds, float32 (B, 3, 32, 32) in [0, 1]."""
    cells_BN = torch.tensor([crowd.codes for crowd in crowds])
    grid = templates()[cells_BN].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).contiguous()


def read_codes(image_B3HW: torch.Tensor) -> torch.Tensor:
    """Nearest cell codes of pictures in [0, 1] (values outside are clipped), int64 (B, N).

    Raises:
        ValueError: pictures of another shape, or with values that are not finite.
    """
    cells_BNP = cell_pixels(image_B3HW, CELL_SIZE)
    return torch.cdist(cells_BNP, templates().flatten(1).expand(len(cells_BNP), -1, -1)).argmin(-1)


def hits(image_B3HW: torch.Tensor, crowds: Sequence[Crowd]) -> dict[str, torch.Tensor]:
    """What of each cell is drawn right.

    Returns:
        bool (B, N) under each of `ATTRIBUTES`: `occupied` (as in the truth: empty or not), `colour`, `size` and `shape`
        (False where the truth or the picture has no object) and `object` (all of them right).

    Raises:
        ValueError: numbers of pictures and crowds differ.
    """
    if len(image_B3HW) != len(crowds):
        raise ValueError(f"{len(image_B3HW)} pictures for {len(crowds)} crowds")
    seen_BN, true_BN = read_codes(image_B3HW), torch.tensor([crowd.codes for crowd in crowds])
    table_T3 = attribute_table()
    same_BN3 = (table_T3[seen_BN] == table_T3[true_BN]) & (true_BN > 0)[..., None]
    colour, size, shape = same_BN3.unbind(-1)
    occupied = (seen_BN > 0) == (true_BN > 0)
    return {"occupied": occupied, "colour": colour, "size": size, "shape": shape, "object": same_BN3.all(-1)}
