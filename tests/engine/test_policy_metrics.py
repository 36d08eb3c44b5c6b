# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from verl_uae.engine.policy_metrics import Figures


@pytest.fixture
def group() -> Iterator[Any]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_counts_valid_samples_only_over_all_micro_batches(group: Any) -> None:
    figures = Figures()
    figures.add({"ratio": torch.tensor([1.0, float("nan"), 3.0])}, torch.tensor([True, False, True]), 1)
    figures.add({"ratio": torch.tensor([8.0])}, torch.tensor([True]), 2)
    found = figures.gather(group)
    assert found["ratio/mean"] == [4.0] and found["ratio/min"] == [1.0] and found["ratio/max"] == [8.0]
    assert found["ratio/std"][0] == pytest.approx((26 / 3) ** 0.5)
    assert found["step01/ratio/mean"] == [2.0] and found["step02/ratio/std"] == [0.0]


def test_a_ratio_close_to_one_keeps_its_spread(group: Any) -> None:
    figures = Figures()
    figures.add({"ratio": 1.0 + torch.tensor([-2e-6, 2e-6])}, torch.ones(2, dtype=torch.bool), None)
    assert figures.gather(group)["ratio/std"][0] == pytest.approx(2e-6, rel=0.05)


def test_other_figures_get_their_mean_and_empty_ones_nothing(group: Any) -> None:
    figures = Figures()
    figures.add({"clipped_low": torch.tensor([1.0, 0.0])}, torch.tensor([True, True]), None)
    figures.add({"k": torch.tensor([1.0])}, torch.tensor([False]), None)
    assert figures.gather(group) == {"clipped_low/mean": [0.5]}
