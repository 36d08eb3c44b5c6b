# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.flow.objective.cases import forward_inputs, with_group_means
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import bind_objective

GROUPS = [0, 1, 0, 1, 0, 1, 0, 1]
#: Nothing is clipped.
OPEN = {"clip_low": 1.0, "clip_high": 1e9}


def _group_loss(inputs, velocity, group: int, beta: float, reference) -> torch.Tensor:
    """-log p(good over bad) / beta of one group: the logistic loss of beta mean(A (L_ref - L)), written out."""
    rows = [b for b, name in enumerate(GROUPS) if name == group]
    preferred = 0.0
    for b in rows:
        target = inputs.noise_BCHW[b] - inputs.x0_BCHW[b]
        better = ((reference[b] - target) ** 2).mean() - ((velocity[b] - target) ** 2).mean()
        preferred = preferred + inputs.advantage_B[b] * better / len(rows)
    return torch.log1p(torch.exp(-beta * preferred)) / beta


@pytest.mark.parametrize("reference", ["old", "base"])
@pytest.mark.parametrize("beta", [0.7, 3.0])
def test_the_gradient_of_a_group_is_that_of_its_preference_s_likelihood(reference, beta) -> None:
    inputs = forward_inputs()
    objective = bind_objective("dgpo", {"beta": beta, "reference": reference, **OPEN})
    inputs = with_group_means(objective, inputs, GROUPS)
    output = objective(inputs)
    # Two groups of four, each its mean.
    (found,) = torch.autograd.grad(output.loss_B.sum() / 4, inputs.velocity_BCHW)
    against = inputs.old_velocity_BCHW if reference == "old" else inputs.reference_velocity_BCHW
    velocity = inputs.velocity_BCHW.detach().requires_grad_()
    expected = sum(_group_loss(inputs, velocity, group, beta, against) for group in (0, 1))
    (wanted,) = torch.autograd.grad(expected, velocity)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)
    assert len(set(output.metrics["group_weight"].tolist())) == 2


def test_at_the_old_policy_half_of_the_advantage_weighs_the_flow_matching_loss() -> None:
    inputs = forward_inputs(change=0.0)
    objective = bind_objective("dgpo")
    inputs = with_group_means(objective, inputs, GROUPS)
    (gradient,) = torch.autograd.grad(objective(inputs).loss_B.sum(), inputs.velocity_BCHW)
    residual = inputs.old_velocity_BCHW - (inputs.noise_BCHW - inputs.x0_BCHW)
    expected = 0.5 * inputs.advantage_B[:, None, None, None] * 2 * residual / 24
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_members_that_are_the_same_cancel() -> None:
    """Advantages of a group sum to 0, so with one latent, noise and velocity for all there is no preference."""
    inputs, objective = forward_inputs(), bind_objective("dgpo", OPEN)
    same = {
        name: getattr(inputs, name)[:1].expand(8, -1, -1, -1).clone().detach()
        for name in ("velocity_BCHW", "old_velocity_BCHW", "x0_BCHW", "noise_BCHW", "x_sigma_BCHW")
    }
    shared = same["velocity_BCHW"][0].clone().requires_grad_()
    inputs = dataclasses.replace(inputs, **{**same, "velocity_BCHW": shared.expand(8, -1, -1, -1)})
    inputs = with_group_means(objective, inputs, [0] * 8)
    assert inputs.group_mean_B.abs().max() < 1e-15
    (gradient,) = torch.autograd.grad(objective(inputs).loss_B.sum(), shared)
    assert gradient.abs().max() < 1e-15


def test_what_has_moved_far_enough_the_right_way_has_no_gradient() -> None:
    """By the likelihood ratio exp(L_old - L), on the side of the advantage's sign only."""
    inputs = forward_inputs(change=0.3)
    objective = bind_objective("dgpo", {"clip_low": 0.01, "clip_high": 0.02, "beta": 1.0})
    output = objective(inputs)
    (gradient,) = torch.autograd.grad(output.loss_B.sum(), inputs.velocity_BCHW)
    rests = []
    for b in range(8):
        target = inputs.noise_BCHW[b] - inputs.x0_BCHW[b]
        old, new = (((v[b] - target) ** 2).mean() for v in (inputs.old_velocity_BCHW, inputs.velocity_BCHW.detach()))
        ratio, advantage = (old - new).exp().item(), inputs.advantage_B[b].item()
        assert output.metrics["likelihood_ratio"][b].item() == pytest.approx(ratio)
        rests.append(ratio > 1.02 if advantage > 0 else ratio < 0.99)
        # The value of the loss is the same, clipped or not.
        assert output.loss_B[b].item() == pytest.approx(0.5 * advantage * new.item())
    assert 0 < sum(rests) < 8
    assert [not each.any() for each in gradient] == rests
    assert output.metrics["likelihood_clipped"].bool().tolist() == rests


@pytest.mark.parametrize(
    ("params", "key"),
    [({"beta": 0.0}, "beta"), ({"clip_low": 1.1}, "clip_low"), ({"reference": "ema"}, "reference")],
)
def test_impossible_parameters_are_refused_with_their_key(params, key) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_objective("dgpo", params)
    assert caught.value.key == f"uae.u4g.objective.params.{key}"
