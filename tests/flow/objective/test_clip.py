# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from tests.flow.objective.cases import Transitions
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import bind_objective
from verl_uae.flow.objective.clip import clipped_loss


def test_ppo_truth_table() -> None:
    """Loss, clip and gradient for each side of the ratio and sign of the advantage; room 0.1 below and 0.2 above."""
    ratio = torch.tensor([0.8, 0.95, 1.1, 1.5] * 2, dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0] * 4 + [-2.0] * 4, dtype=torch.float64)
    loss, metrics = clipped_loss(ratio, advantage, clip_low=0.1, clip_high=0.2)
    expected = torch.tensor([-1.6, -1.9, -2.2, -2.4, 1.8, 1.9, 2.2, 3.0], dtype=torch.float64)
    assert torch.allclose(loss, expected, atol=1e-12)
    assert metrics["clipped_high"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert metrics["clipped_low"].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    assert gradient.tolist() == [-2.0, -2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 2.0]


def test_k_is_reported_and_shifts_the_ratio() -> None:
    """Over many samples of the old policy, mean log r = -k."""
    case = Transitions(batch=20000)
    metrics = bind_objective("flow_grpo")(case(case.nearby(0.2))).metrics
    k = metrics["k"].mean()
    spread = metrics["ratio"].log().std() / len(metrics["k"]) ** 0.5
    assert (metrics["ratio"].log().mean() + k).abs() < 4.0 * spread < 0.5 * k


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"clip_low": 0.0}, "clip_low"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_low": -1e-4}, "clip_low"),
        ({"clip_high": float("nan")}, "clip_high"),
        ({"clip_high": float("inf")}, "clip_high"),
        ({"clip_high": True}, "clip_high"),
        ({"clip_high": "1e-4"}, "clip_high"),
        ({"clip_high": None}, "clip_high"),
    ],
)
@pytest.mark.parametrize("name", ["flow_grpo", "grpo_guard"])
def test_impossible_widths_are_refused_with_their_key(name, params, key) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_objective(name, params)
    assert caught.value.key == f"uae.u4g.objective.params.{key}"
