# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Reference custom reward: do source and reconstruction hold the same amounts of the same colours?

Blind to where the colours are, so it goes well with a term that sees position. Copy this file to write your own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], bins: int = 4
) -> dict[str, float]:
    """Intersection of the RGB histograms of source and reconstruction.

    Args:
        data_source: name of the data set the sample is from. Not used.
        solution_str: the caption. Not used.
        ground_truth: the row's ground truth. Not used.
        extra_info: the row's ``extra_info`` with ``source_image``, ``reconstruction`` (PIL pictures) and ``caption``.
        bins: bins per channel, so ``bins ** 3`` colours.

    Returns:
        ``score`` in [0, 1], 1 for equal histograms; ``colors``, how many bins of the source are in use, is logged.
    """
    source = color_histogram(extra_info["source_image"], bins)
    reconstruction = color_histogram(extra_info["reconstruction"], bins)
    return {
        "score": float(np.minimum(source, reconstruction).sum()),
        "colors": float(np.count_nonzero(source)),
    }


def color_histogram(image: Image.Image, bins: int) -> np.ndarray:
    """Share of the pixels in each colour bin, shape (bins ** 3,), summing to 1."""
    levels_P3 = np.asarray(image.convert("RGB"), dtype=np.int64).reshape(-1, 3) * bins // 256
    index_P = (levels_P3[:, 0] * bins + levels_P3[:, 1]) * bins + levels_P3[:, 2]
    return np.bincount(index_P, minlength=bins**3) / len(index_P)
