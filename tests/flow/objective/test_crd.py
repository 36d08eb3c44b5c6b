# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.flow.objective.cases import forward_inputs, with_group_means
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import bind_objective

GROUPS = [0, 0, 0, 1, 1, 1, 1, 1]


def _reference(inputs, velocity, beta: float, advantage_max: float, sizes) -> torch.Tensor:
    """Losses from the formulas: rewards and implicit rewards less the means of their group, which are numbers."""
    implicit, rewards = [], []
    for b in range(8):
        target = inputs.noise_BCHW[b] - inputs.x0_BCHW[b]
        old = ((inputs.old_velocity_BCHW[b] - target) ** 2).mean() / (inputs.old_velocity_BCHW[b] - target).abs().mean()
        implicit.append(old - ((velocity[b] - target) ** 2).mean() / sizes[b])
        rewards.append((min(max(inputs.advantage_B[b].item() / advantage_max, -1.0), 1.0) + 1.0) / 2.0)
    losses = []
    for b in range(8):
        rows = [other for other in range(8) if GROUPS[other] == GROUPS[b]]
        mean = sum(implicit[row].item() for row in rows) / len(rows)
        reward = rewards[b] - sum(rewards[row] for row in rows) / len(rows)
        losses.append((beta * (implicit[b] - mean) - reward) ** 2 * advantage_max / beta)
    return torch.stack(losses)


@pytest.mark.parametrize(("beta", "advantage_max"), [(1.0, 5.0), (0.3, 8.0)])
def test_loss_and_gradient_against_the_formulas(beta, advantage_max) -> None:
    inputs = forward_inputs()
    objective = bind_objective("crd", {"beta": beta, "advantage_max": advantage_max})
    inputs = with_group_means(objective, inputs, GROUPS)
    output = objective(inputs)
    (found,) = torch.autograd.grad(output.loss_B.sum(), inputs.velocity_BCHW)
    velocity = inputs.velocity_BCHW.detach().requires_grad_()
    target = inputs.noise_BCHW - inputs.x0_BCHW
    sizes = (velocity.detach() - target).abs().mean((1, 2, 3)).tolist()
    expected = _reference(inputs, velocity, beta, advantage_max, sizes)
    (wanted,) = torch.autograd.grad(expected.sum(), velocity)
    torch.testing.assert_close(output.loss_B, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(output.metrics["positive_error"], torch.tensor(sizes, dtype=torch.float64))
    assert torch.equal(output.metrics["clipped_advantage"].bool(), inputs.advantage_B.abs() > advantage_max)
    for group in (0, 1):
        rows = [b for b in range(8) if GROUPS[b] == group]
        assert output.metrics["reward_gap"][rows].sum().abs() < 1e-12, "centred"


@pytest.mark.parametrize(("beta", "advantage_max"), [(1.0, 6.0), (0.3, 9.0)])
def test_at_the_old_policy_the_gradient_is_advantage_times_residual_whatever_the_parameters(
    beta, advantage_max
) -> None:
    inputs = forward_inputs(change=0.0)
    objective = bind_objective("crd", {"beta": beta, "advantage_max": advantage_max})
    # Advantages are centred in their group, as they come.
    inputs = with_group_means(objective, inputs, [0] * 8)
    (gradient,) = torch.autograd.grad(objective(inputs).loss_B.sum(), inputs.velocity_BCHW)
    residual = inputs.old_velocity_BCHW - (inputs.noise_BCHW - inputs.x0_BCHW)
    size = residual.abs().mean((1, 2, 3), keepdim=True)
    expected = inputs.advantage_B[:, None, None, None] * 2 * residual / (24 * size)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_a_group_without_advantage_moves_nothing_at_the_old_policy() -> None:
    inputs = dataclasses.replace(forward_inputs(change=0.0), advantage_B=torch.zeros(8, dtype=torch.float64))
    objective = bind_objective("crd")
    inputs = with_group_means(objective, inputs, GROUPS)
    output = objective(inputs)
    (gradient,) = torch.autograd.grad(output.loss_B.sum(), inputs.velocity_BCHW)
    assert not output.loss_B.any() and not gradient.any()


@pytest.mark.parametrize(("params", "key"), [({"beta": 0.0}, "beta"), ({"advantage_max": -1.0}, "advantage_max")])
def test_impossible_parameters_are_refused_with_their_key(params, key) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_objective("crd", params)
    assert caught.value.key == f"uae.u4g.objective.params.{key}"
