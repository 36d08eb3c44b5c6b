# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.rewards.conftest import ROOT
from verl_uae.reward import RewardScorer
from verl_uae.reward.function import CustomReward


def test_against_numpys_histogram(example, to_batch) -> None:
    draw = np.random.default_rng(0)
    one, other = (Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(2))
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    params = {"path": str(ROOT / "rewards/color_histogram.py"), "reward_kwargs": {"bins": 3}}
    records = RewardScorer([("custom", 1.0, params)]).score(to_batch([one, black, one], [one, white, other]))
    assert [record.value for record in records[:2]] == [1.0, 0.0]
    histograms = [
        np.histogramdd(np.asarray(image).reshape(-1, 3), bins=3, range=[(0, 256)] * 3)[0] / 64 for image in (one, other)
    ]
    assert records[2].value == pytest.approx(np.minimum(*histograms).sum())
    assert records[2].terms["custom/colors"] == np.count_nonzero(histograms[0])


def test_is_an_ordinary_function_with_known_bounds(example) -> None:
    module, red = example("color_histogram"), Image.new("RGB", (4, 4), "red")
    assert module.color_similarity(red, red) == {"score": 1.0, "colors": 1.0}
    assert CustomReward(str(ROOT / "rewards/color_histogram.py")).bounds == (0.0, 1.0)
