# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.flow.objective.cases import STEP, Transitions
from verl_uae.errors import ConfigError
from verl_uae.flow.kernels import coefficients
from verl_uae.flow.objective import TransitionInputs, bind_objective
from verl_uae.flow.objective.dppo import moves_away

#: mean(z d) / std in units of k, and the side each direction sees: of log r = p - k, of log r - k, of log r + k.
SIDES = {-1.0: (-1, -1, -1), 0.5: (-1, -1, 1), 1.5: (1, -1, 1), 3.0: (1, 1, 1)}
DIRECTIONS = ("ratio", "exact", "debiased")


def _one_sample(p: float, k: float, advantage: float, log_prob: torch.Tensor) -> tuple[TransitionInputs, float]:
    """A sample with a given k and mean(z d) / std = p k, whose log-ratio is therefore (p - 1) k."""
    std = 0.5
    d = torch.full((1, 1, 2, 4), std * (2.0 * k) ** 0.5, dtype=torch.float64)
    old_mean = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).view(1, 1, 2, 4)
    x_next = old_mean + d * (p / 2.0)
    fields = [log_prob, torch.zeros(1, dtype=torch.float64), old_mean + d, old_mean, x_next, std, 0.1, 0.7, "cps"]
    return TransitionInputs(*fields, torch.tensor([advantage], dtype=torch.float64)), (p - 1.0) * k


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("p", SIDES)
@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
@pytest.mark.parametrize("k", [0.9e-4, 1.1e-4])
def test_truth_table(direction, p, advantage, k) -> None:
    """Masked exactly where k reaches the threshold and the side has the advantage's sign."""
    log_prob = torch.tensor([(p - 1.0) * k], dtype=torch.float64, requires_grad=True)
    inputs, log_ratio = _one_sample(p, k, advantage, log_prob)
    output = bind_objective("dppo", {"threshold": 1e-4, "direction": direction})(inputs)
    masked = k > 1e-4 and SIDES[p][DIRECTIONS.index(direction)] * advantage > 0
    ratio = torch.tensor([log_ratio], dtype=torch.float64).exp()
    assert torch.allclose(output.metrics["k"], torch.tensor([k], dtype=torch.float64), rtol=1e-9)
    assert torch.equal(output.loss_B, torch.zeros(1) if masked else -advantage * ratio)
    assert output.metrics["masked_high"].item() == (masked and advantage > 0)
    assert output.metrics["masked_low"].item() == (masked and advantage < 0)
    (gradient,) = torch.autograd.grad(output.loss_B.sum(), log_prob)
    assert torch.equal(gradient, torch.zeros(1) if masked else -advantage * ratio)


def test_the_threshold_itself_is_masked() -> None:
    case = Transitions()
    inputs = case(case.nearby(0.05))
    k = bind_objective("dppo")(inputs).metrics["k"]
    alone = dataclasses.replace(inputs, advantage_B=torch.where(inputs.log_prob_B > inputs.old_log_prob_B, 1.0, -1.0))
    for position in range(3):
        output = bind_objective("dppo", {"threshold": k[position].item()})(alone)
        assert output.loss_B[position] == 0.0
        above = bind_objective("dppo", {"threshold": k[position].item() * (1.0 + 1e-12)})(alone)
        assert above.loss_B[position] != 0.0


@pytest.mark.parametrize("direction", ["exact", "debiased"])
def test_directions_are_their_formula_in_log_r_and_k(direction) -> None:
    case = Transitions(batch=4000)
    inputs = case(case.nearby(0.5))
    ratio = (inputs.log_prob_B - inputs.old_log_prob_B).exp()
    k = bind_objective("dppo")(inputs).metrics["k"]
    assert k.min() > 0.0
    expected = inputs.advantage_B * (ratio.log() + (k if direction == "debiased" else -k)) > 0
    found = moves_away(direction, ratio, inputs.mean_BCHW, inputs.old_mean_BCHW, inputs.x_next_BCHW, inputs.advantage_B)
    assert torch.equal(found, expected)
    assert not torch.equal(found, (ratio > 1.0) == (inputs.advantage_B > 0))


def test_exact_direction_agrees_with_the_derivative_of_k_along_the_update() -> None:
    """An unmasked step of gradient descent raises k in exactly the samples that the direction names."""
    case = Transitions("cps", batch=2000)
    velocity = case.nearby(0.3).requires_grad_()
    inputs = case(velocity)
    (update,) = torch.autograd.grad(-(inputs.advantage_B * inputs.log_prob_B).sum(), velocity, retain_graph=True)
    k = (inputs.mean_BCHW - inputs.old_mean_BCHW).square().mean((1, 2, 3)) / (2.0 * inputs.std**2)
    (slope,) = torch.autograd.grad(k.sum(), velocity)
    raises_k = (slope * -update).sum((1, 2, 3)) > 0
    output = bind_objective("dppo", {"threshold": 1e-12, "direction": "exact"})(inputs)
    masked = output.metrics["masked_high"] + output.metrics["masked_low"]
    assert torch.equal(masked.bool(), raises_k) and 0.3 < raises_k.double().mean() < 0.7


def test_k_is_the_same_for_every_kernel_given_the_same_move_in_units_of_its_std() -> None:
    """d = 0.01 std gives k = 5e-5 whatever the kernel, step size or noise level: no factor of the step hides in it."""
    for kernel, noise_level in STEP.items():
        for sigma, sigma_next in ((0.9, 0.8), (0.5, 0.2)):
            std = coefficients(kernel, sigma, sigma_next, noise_level, 0.95).std
            case = Transitions(kernel)
            inputs = dataclasses.replace(
                case(case.old_velocity),
                mean_BCHW=case.old_mean + 0.01 * std,
                std=std,
                step_size=sigma - sigma_next,
                sigma=sigma,
            )
            k = bind_objective("dppo")(inputs).metrics["k"]
            assert torch.allclose(k, torch.full_like(k, 0.01**2 / 2.0), rtol=1e-9)


@pytest.mark.parametrize(
    ("params", "key", "message"),
    [
        ({"threshold": 0.0}, "threshold", "above 0"),
        ({"threshold": float("inf")}, "threshold", "finite"),
        ({"direction": "both"}, "direction", "ratio, exact, debiased"),
    ],
)
def test_impossible_parameters_are_refused_with_their_key(params, key, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        bind_objective("dppo", params)
    assert caught.value.key == f"uae.u4g.objective.params.{key}"


def test_an_unknown_direction_is_refused_at_run_too() -> None:
    with pytest.raises(ValueError, match="direction"):
        moves_away("both", *[torch.zeros(1)] * 5)
