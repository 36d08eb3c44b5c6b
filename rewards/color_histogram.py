# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Do source and reconstruction hold the same amounts of the same colours?

Blind to where the colours are, so it goes well with a term that sees position. Copy this file to write your own.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from verl_uae.reward import reward_function


@reward_function(bounds=(0, 1))
def color_similarity(source: Image.Image, reconstruction: Image.Image, bins: int = 4) -> dict[str, float]:
    """Intersection of the RGB histograms of source and reconstruction (Swain and Ballard 1991).

    Args:
        source: the source picture.
        reconstruction: what was drawn from its caption.
        bins: bins per channel, so ``bins ** 3`` colours.

    Returns:
        ``score`` in [0, 1], 1 for equal histograms; ``colors``, how many bins of the source are in use, is logged.
    """
    wanted, drawn = color_histogram(source, bins), color_histogram(reconstruction, bins)
    return {"score": float(np.minimum(wanted, drawn).sum()), "colors": float(np.count_nonzero(wanted))}


def color_histogram(image: Image.Image, bins: int) -> np.ndarray:
    """Share of the pixels in each colour bin, shape (bins ** 3,), summing to 1."""
    levels_P3 = np.asarray(image.convert("RGB"), dtype=np.int64).reshape(-1, 3) * bins // 256
    index_P = (levels_P3[:, 0] * bins + levels_P3[:, 1]) * bins + levels_P3[:, 2]
    return np.bincount(index_P, minlength=bins**3) / len(index_P)
