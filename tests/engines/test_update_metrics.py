# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from verl_uae.engines.update_metrics import Figures


@pytest.fixture
def group() -> Iterator[Any]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_counts_valid_samples_only_over_all_micro_batches(group: Any) -> None:
    figures = Figures()
    figures.add({"ratio": torch.tensor([1.0, float("nan"), 3.0])}, torch.tensor([True, False, True]), 1)
    figures.add({"ratio": torch.tensor([8.0])}, torch.tensor([True]), 2)
    found, _ = figures.gather(group)
    assert found["ratio/mean"] == [4.0] and found["ratio/min"] == [1.0] and found["ratio/max"] == [8.0]
    assert found["ratio/std"][0] == pytest.approx((26 / 3) ** 0.5)
    assert found["step01/ratio/mean"] == [2.0] and found["step02/ratio/std"] == [0.0]


def test_a_ratio_close_to_one_keeps_its_spread(group: Any) -> None:
    figures = Figures()
    figures.add({"ratio": 1.0 + torch.tensor([-2e-6, 2e-6])}, torch.ones(2, dtype=torch.bool), None)
    assert figures.gather(group)[0]["ratio/std"][0] == pytest.approx(2e-6, rel=0.05)


def test_other_figures_get_their_mean_and_empty_ones_nothing(group: Any) -> None:
    figures = Figures()
    figures.add({"clipped_low": torch.tensor([1.0, 0.0])}, torch.tensor([True, True]), None)
    figures.add({"k": torch.tensor([1.0])}, torch.tensor([False]), None)
    assert figures.gather(group) == ({"clipped_low/mean": [0.5]}, [])


def test_the_numbers_are_those_of_reading_each_at_once(group: Any) -> None:
    """To the last bit: statistics of the valid samples of all micro-batches and places in float64."""
    generator = torch.Generator().manual_seed(0)
    figures, read, losses = Figures(), [], []
    for step in (1, 1, 2):
        value_B, valid_B = torch.randn(5, generator=generator), torch.rand(5, generator=generator) > 0.4
        value_B[~valid_B] = float("nan")
        figures.add({"ratio": value_B, "k": value_B.square()}, valid_B, step)
        figures.add_loss(value_B[valid_B].sum())
        read += value_B.double()[valid_B].tolist()
        losses.append(value_B[valid_B].sum().item())
    found, gathered = figures.gather(group)
    assert gathered == losses
    for statistic, function in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        assert found[f"ratio/{statistic}"] == [float(function(read))]
    assert len({found[f"step0{step}/k/mean"][0] for step in (1, 2)}) == 2
