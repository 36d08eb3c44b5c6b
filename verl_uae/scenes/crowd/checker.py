# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Read a crowd back from a picture: every cell is its nearest cell picture, by squared distance.

Shapes: B batch, N cells (16), P numbers of a cell picture (3 * 8 * 8).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from verl_uae.scenes.crowd.world import CELL_SIZE, IMAGE_SIZE, Crowd, templates
from verl_uae.scenes.render import COLOURS, OBJECTS, SHAPES, SIZES

ATTRIBUTES: tuple[str, ...] = ("occupied", "colour", "size", "shape", "object")


def read_codes(image_B3HW: torch.Tensor) -> torch.Tensor:
    """Nearest cell codes of pictures in [0, 1] (values outside are clipped), int64 (B, N).

    Raises:
        ValueError: pictures of another shape, or with values that are not finite.
    """
    if image_B3HW.ndim != 4 or tuple(image_B3HW.shape[1:]) != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"expected (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), got {tuple(image_B3HW.shape)}")
    if not bool(torch.isfinite(image_B3HW).all()):
        raise ValueError("pictures hold values that are not finite")
    cells = image_B3HW.float().clamp(0, 1).unfold(2, CELL_SIZE, CELL_SIZE).unfold(3, CELL_SIZE, CELL_SIZE)
    cells_BNP = cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
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
    table_T3 = torch.tensor(
        [[-1, -1, -1]]
        + [[list(COLOURS).index(o.colour), list(SIZES).index(o.size), SHAPES.index(o.shape)] for o in OBJECTS]
    )
    same_BN3 = (table_T3[seen_BN] == table_T3[true_BN]) & (true_BN > 0)[..., None]
    colour, size, shape = same_BN3.unbind(-1)
    occupied = (seen_BN > 0) == (true_BN > 0)
    return {"occupied": occupied, "colour": colour, "size": size, "shape": shape, "object": same_BN3.all(-1)}
