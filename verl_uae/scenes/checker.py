# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Read a scene back from a picture, and compare it with the truth.

Every cell is matched to the 75 cell pictures by squared distance. The background is the one whose best matches have the
smallest sum over the four cells; the content of a cell is its best match under that background. On rendered pictures
this is exact, on drawn ones it is the nearest scene.

Shapes: B batch, N cells (4), T templates of a cell on one background (25), P numbers of a cell picture (3 * 16 * 16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch

from verl_uae.scenes.render import (
    BACKGROUNDS,
    CELL_SIZE,
    COLOURS,
    IMAGE_SIZE,
    OBJECTS,
    SHAPES,
    SIZES,
    Scene,
    cell_templates,
    scene_codes,
)

DRAWN_ATTRIBUTES: tuple[str, ...] = ("background", "position", "colour", "size", "shape")
"""What `drawn_accuracy` averages over."""


def cell_pixels(images_B3HW: torch.Tensor, size: int) -> torch.Tensor:
    """Square cells of pictures in reading order, float32 (B, N, P) on the host, clipped to [0, 1].

    Args:
        images_B3HW: float, 32x32.
        size: of a cell, pixels.

    Raises:
        ValueError: pictures of another shape, or with values that are not finite.
    """
    if images_B3HW.ndim != 4 or tuple(images_B3HW.shape[1:]) != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"expected (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), got {tuple(images_B3HW.shape)}")
    images = images_B3HW.detach().to("cpu", torch.float32)
    if not torch.isfinite(images).all():
        raise ValueError("pictures hold values that are not finite")
    cells = images.clamp(0, 1).unfold(2, size, size).unfold(3, size, size)
    return cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def read_codes(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Nearest scene of each picture.

    Args:
        images_B3HW: float in [0, 1] (values outside are clipped), 32x32.

    Returns:
        int64 (B, 5) in the layout of `verl_uae.scenes.render.scene_codes`.

    Raises:
        ValueError: pictures of another shape, or with values that are not finite.
    """
    cells_NP = cell_pixels(images_B3HW, CELL_SIZE).flatten(0, 1)
    templates_KP = cell_templates().float().div(255).flatten(2).flatten(0, 1)
    # |c - t|^2 without |c|^2, which is the same for every template of a cell.
    distance = templates_KP.square().sum(1) - 2 * cells_NP @ templates_KP.T
    best = distance.view(len(images_B3HW), 4, len(BACKGROUNDS), 1 + len(OBJECTS)).min(-1)
    background_B = best.values.sum(1).argmin(1)
    cells_BN = best.indices.gather(2, background_B.view(-1, 1, 1).expand(-1, 4, 1)).squeeze(2)
    return torch.cat([background_B[:, None], cells_BN], dim=1)


def read_scenes(images_B3HW: torch.Tensor) -> list[Scene]:
    """`read_codes` as scenes."""
    return [Scene.from_codes(row) for row in read_codes(images_B3HW).tolist()]


def attribute_scores(images_B3HW: torch.Tensor, scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """How much of each true scene its picture shows, per picture.

    Returns:
        float32 (B,) in [0, 1] under `background`, `position` (exactly the right cells are occupied), `colour`, `size`,
        `shape` (share of the scene's objects; an object missing from its cell has none of them right) and `scene`
        (everything right).

    Raises:
        ValueError: numbers of pictures and scenes differ, or a scene has no object.
    """
    if len(images_B3HW) != len(scenes):
        raise ValueError(f"{len(images_B3HW)} pictures for {len(scenes)} scenes")
    seen_B5, true_B5 = read_codes(images_B3HW), scene_codes(scenes)
    seen_BN, true_BN = seen_B5[:, 1:], true_B5[:, 1:]
    occupied_BN = true_BN > 0
    count_B = occupied_BN.sum(1)
    if not bool((count_B > 0).all()):
        raise ValueError("a scene without objects has no object attributes to score")
    scores = {
        "background": seen_B5[:, 0] == true_B5[:, 0],
        "position": ((seen_BN > 0) == occupied_BN).all(1),
        "scene": (seen_B5 == true_B5).all(1),
    }
    # An empty cell has class -1 in every attribute, so it never equals that of a true object.
    table_T3 = attribute_table()
    hits_BN3 = (table_T3[seen_BN] == table_T3[true_BN]) & occupied_BN[..., None]
    for name, hits_BN in zip(("colour", "size", "shape"), hits_BN3.unbind(-1), strict=True):
        scores[name] = hits_BN.sum(1) / count_B
    return {name: value.float() for name, value in scores.items()}


def attribute_accuracy(images_B3HW: torch.Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Means of `attribute_scores` over a batch, each in [0, 1]."""
    return {name: float(score.mean()) for name, score in attribute_scores(images_B3HW, scenes).items()}


def drawn_accuracy(accuracy: Mapping[str, float]) -> float:
    """One number in [0, 1]: the mean of background, position, colour, size and shape."""
    return sum(accuracy[name] for name in DRAWN_ATTRIBUTES) / len(DRAWN_ATTRIBUTES)


@lru_cache(maxsize=1)
def attribute_table() -> torch.Tensor:
    """Class of every cell code in colour, size and shape, int64 (25, 3); an empty cell has -1."""
    rows = [[list(COLOURS).index(o.colour), list(SIZES).index(o.size), SHAPES.index(o.shape)] for o in OBJECTS]
    return torch.tensor([[-1, -1, -1], *rows])
