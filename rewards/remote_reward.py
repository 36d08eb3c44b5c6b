# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Is everything as bright where it was? An ordinary reward, computed on another machine.

What makes it remote is who calls it. On the machine that computes it, which has this file:

    verl-uae reward-server --host 0.0.0.0 --token-file token \
        --term '{name: custom, label: layout, params: {path: rewards/remote_reward.py}}'

In the run, with the same token in a file or in VERL_UAE_REWARD_TOKEN:

    uae.reward.terms:
      - {name: clip, weight: 0.8}
      - {name: remote, label: far, weight: 0.2, params: {url: "http://reward-host:8900", token_file: token}}

The value is logged as reward/far/mean, its parts as reward/far/layout/mean and reward/far/layout/words/mean. Deadline,
retries and what each failure becomes: docs/remote_rewards.md.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from verl_uae.reward import reward_function


@reward_function(bounds=(0, 1))
def layout(source: Image.Image, reconstruction: Image.Image, caption: str, cells: int = 8) -> dict[str, float]:
    """One minus the mean difference of brightness, cell by cell on a coarse grid.

    Args:
        source: the source picture.
        reconstruction: what was drawn from its caption.
        caption: its number of words is logged.
        cells: cells of the grid per side, at least 1.

    Returns:
        ``score`` in [0, 1], 1 for equal grids; ``words`` of the caption.
    """
    difference = np.abs(brightness(source, cells) - brightness(reconstruction, cells)).mean()
    return {"score": 1.0 - float(difference), "words": float(len(caption.split()))}


def brightness(image: Image.Image, cells: int) -> np.ndarray:
    """Mean luma (ITU-R 601) of each cell of the grid, shape (cells, cells), in [0, 1]."""
    gray = image.convert("L").resize((cells, cells), Image.Resampling.BOX)
    return np.asarray(gray, dtype=float) / 255.0
