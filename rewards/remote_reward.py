# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A reward to be served from another machine: is everything where it was?

It is an ordinary custom reward; what makes it remote is who calls it. On the machine that computes it:

    verl-uae reward-server --host 0.0.0.0 --token-file TOKEN \
        --term '{name: custom, label: layout, params: {path: rewards/remote_reward.py, bounds: [0, 1]}}'

In the run, with the same token in a file or in VERL_UAE_REWARD_TOKEN:

    'uae.reward.terms=[{name: clip, weight: 0.8},
                       {name: remote, label: far, weight: 0.2, params: {url: "http://SERVER:8900"}}]'

The value is then logged as reward/far/mean and its part as reward/far/layout/mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], cells: int = 8
) -> dict[str, float]:
    """Compare brightness cell by cell on a coarse grid.

    Args:
        data_source: name of the data set the sample is from. Not used.
        solution_str: the caption; its number of words is logged.
        ground_truth: the row's ground truth. Not used.
        extra_info: the row's ``extra_info`` with ``source_image``, ``reconstruction`` (PIL pictures) and ``caption``.
        cells: cells of the grid per side.

    Returns:
        ``score`` in [0, 1], 1 for equal grids; ``words`` of the caption.
    """
    source = brightness(extra_info["source_image"], cells)
    reconstruction = brightness(extra_info["reconstruction"], cells)
    return {"score": 1.0 - float(np.abs(source - reconstruction).mean()), "words": float(len(solution_str.split()))}


def brightness(image: Image.Image, cells: int) -> np.ndarray:
    """Mean luma of each cell of the grid, shape (cells, cells), in [0, 1]."""
    gray = image.convert("L").resize((cells, cells), Image.Resampling.BOX)
    return np.asarray(gray, dtype=float) / 255.0
