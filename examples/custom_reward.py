# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A reward function usable by path: do the edges of source and reconstruction lie in the same places?

    python -m verl.trainer.main_ppo --config-name uae_g4u ... \\
        reward.custom_reward_function.path=examples/custom_reward.py uae.reward.custom_weight=0.2
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], max_words: int = 512
) -> dict[str, float]:
    """Correlation of edge strength, scaled from [-1, 1] to [0, 1].

    Args:
        data_source: name of the data set. Not used.
        solution_str: the caption.
        ground_truth: the row's ground truth. Not used.
        extra_info: holds ``source_image`` and ``reconstruction``, PIL pictures of one size.
        max_words: a caption with more words scores 0. An example of ``reward_kwargs``.

    Returns:
        ``score``, and ``words`` for the log.
    """
    words = len(solution_str.split())
    source, drawn = edges(extra_info["source_image"]), edges(extra_info["reconstruction"])
    spread = float(np.linalg.norm(source) * np.linalg.norm(drawn))
    # A picture without any edge has no places to compare; NaN marks the sample as invalid.
    similarity = float((source * drawn).sum()) / spread if spread > 0 else float("nan")
    return {"score": 0.0 if words > max_words else 0.5 + 0.5 * similarity, "words": float(words)}


def edges(image: Image.Image) -> np.ndarray:
    """Centred edge strength of the gray picture, shape (H - 1, W - 1)."""
    gray_HW = np.asarray(image.convert("L"), dtype=np.float64) / 255.0
    strength = np.abs(np.diff(gray_HW, axis=0))[:, :-1] + np.abs(np.diff(gray_HW, axis=1))[:-1]
    return strength - strength.mean()
