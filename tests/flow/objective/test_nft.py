# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.flow.objective.cases import forward_inputs
from verl_uae.errors import ConfigError
from verl_uae.flow.matching import forward_noise
from verl_uae.flow.objective import ForwardInputs, bind_objective


def _reference(inputs, velocity, beta: float, advantage_max: float, weights=None):
    """Sample by sample, from the formulas; the weights are constants if given. Returns losses and weights."""
    losses, used = [], []
    for b in range(len(inputs.advantage_B)):
        share = min(max(inputs.advantage_B[b].item() / advantage_max, -1.0), 1.0)
        good, bad = 0.5 + 0.5 * share, 0.5 - 0.5 * share
        x0, sigma, old = inputs.x0_BCHW[b], inputs.sigma_B[b], inputs.old_velocity_BCHW[b]
        shift = beta * (velocity[b] - old)
        errors = [inputs.x_sigma_BCHW[b] - sigma * (old + sign * shift) - x0 for sign in (1.0, -1.0)]
        w = [error.abs().mean().item() for error in errors] if weights is None else weights[b]
        used.append(w)
        terms = [(error**2).mean() / weight for error, weight in zip(errors, w, strict=True)]
        losses.append((good * terms[0] + bad * terms[1]) / beta * advantage_max)
    return torch.stack(losses), used


@pytest.mark.parametrize(("beta", "advantage_max"), [(1.0, 5.0), (0.1, 2.0)])
def test_loss_against_the_formulas(beta, advantage_max) -> None:
    inputs = forward_inputs()
    found = bind_objective("nft", {"beta": beta, "advantage_max": advantage_max})(inputs)
    expected, weights = _reference(inputs, inputs.velocity_BCHW, beta, advantage_max)
    assert torch.allclose(found.loss_B, expected, rtol=1e-10)
    assert torch.allclose(found.metrics["positive_error"], torch.tensor(weights, dtype=torch.float64)[:, 0])
    assert torch.allclose(found.metrics["negative_error"], torch.tensor(weights, dtype=torch.float64)[:, 1])
    clipped = inputs.advantage_B.abs() > advantage_max
    assert torch.equal(found.metrics["clipped_advantage"].bool(), clipped) and 0 < clipped.sum() < 8


def test_gradient_agrees_with_finite_differences_at_constant_weights() -> None:
    """Off-policy, fp64, relative 1e-6; the weights carry no gradient."""
    inputs = forward_inputs(batch=3)
    params = {"beta": 0.4, "advantage_max": 4.0}
    loss = bind_objective("nft", params)(inputs).loss_B.sum()
    (gradient,) = torch.autograd.grad(loss, inputs.velocity_BCHW)
    velocity = inputs.velocity_BCHW.detach()
    _, weights = _reference(inputs, velocity, **params)
    for position in torch.randperm(velocity.numel(), generator=torch.Generator().manual_seed(0))[:20]:
        step = torch.zeros_like(velocity).flatten()
        step[position] = 1e-4
        step = step.view_as(velocity)
        up, down = (_reference(inputs, velocity + sign * step, **params, weights=weights)[0].sum() for sign in (1, -1))
        # The loss is a parabola in the velocity, so the central difference has no error of order.
        assert torch.allclose(gradient.flatten()[position], (up - down) / 2e-4, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("advantage_max", [5.0, 8.0])
def test_on_policy_gradient_is_advantage_times_residual_whatever_the_parameters(beta, advantage_max) -> None:
    """(2 r - 1) advantage_max = A, cut at advantage_max; the residual of flow matching is e = sigma (eps - x0 - v)."""
    inputs = forward_inputs(change=0.0)
    loss = bind_objective("nft", {"beta": beta, "advantage_max": advantage_max})(inputs).loss_B
    (gradient,) = torch.autograd.grad(loss.sum(), inputs.velocity_BCHW)
    sigma = inputs.sigma_B[:, None, None, None]
    error = sigma * (inputs.noise_BCHW - inputs.x0_BCHW - inputs.old_velocity_BCHW)
    size = error.abs().mean((1, 2, 3), keepdim=True)
    advantage = inputs.advantage_B.clamp(-advantage_max, advantage_max)[:, None, None, None]
    assert torch.allclose(gradient, -2.0 * advantage * sigma * error / (24 * size), rtol=1e-9)


def test_no_advantage_no_gradient_on_policy() -> None:
    inputs = forward_inputs(change=0.0)
    inputs = dataclasses.replace(inputs, advantage_B=torch.zeros(8, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(bind_objective("nft")(inputs).loss_B.sum(), inputs.velocity_BCHW)
    assert gradient.abs().max() < 1e-15


def test_a_perfect_prediction_divides_by_the_floor_and_not_by_zero() -> None:
    inputs = forward_inputs(dtype=torch.float32)
    x0, noise, sigma = inputs.x0_BCHW.round(), inputs.noise_BCHW.round(), torch.full((8,), 0.5)
    exact = noise - x0
    perfect = ForwardInputs(
        exact.clone().requires_grad_(), exact, x0, forward_noise(x0, noise, sigma), sigma, noise, inputs.advantage_B
    )
    output = bind_objective("nft")(perfect)
    (gradient,) = torch.autograd.grad(output.loss_B.sum(), perfect.velocity_BCHW)
    assert not output.metrics["positive_error"].any()
    assert torch.equal(output.loss_B, torch.zeros(8)) and torch.equal(gradient, torch.zeros_like(exact))


def test_a_noised_latent_in_half_precision_is_refused() -> None:
    inputs = forward_inputs(dtype=torch.float32)
    with pytest.raises(TypeError, match="float32"):
        bind_objective("nft")(dataclasses.replace(inputs, x_sigma_BCHW=inputs.x_sigma_BCHW.bfloat16()))


@pytest.mark.parametrize(
    ("params", "key"), [({"beta": 0.0}, "beta"), ({"beta": 1.5}, "beta"), ({"advantage_max": 0}, "advantage_max")]
)
def test_impossible_parameters_are_refused_with_their_key(params, key) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_objective("nft", params)
    assert caught.value.key == f"uae.u4g.objective.params.{key}"
