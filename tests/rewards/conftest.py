# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Example rewards, loaded as a run loads them, and pictures as a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from verl_uae.reward import RewardBatch, load_reward_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def example() -> Callable[[str], ModuleType]:
    """``example("ocr")``: the module of rewards/ocr.py."""
    return lambda name: load_reward_file(str(ROOT / "rewards" / f"{name}.py")).module


@pytest.fixture(scope="session")
def to_batch() -> Callable[[Sequence[Image.Image], Sequence[Image.Image]], RewardBatch]:
    """``to_batch(sources, reconstructions)``: pictures of one size, without captions and rows."""

    def stack(pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).permute(0, 3, 1, 2) / 255

    return lambda sources, reconstructions: RewardBatch(stack(sources), stack(reconstructions))
