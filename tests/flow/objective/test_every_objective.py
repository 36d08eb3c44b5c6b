# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for all objectives alike."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from tests.flow.objective.cases import FORWARD_RUNS, RUNS, Transitions, forward_inputs, rows, sampled, with_group_means
from verl_uae.flow.objective import bind_objective, get_objective
from verl_uae.flow.objective.registry import OBJECTIVES

CASES = [(name, params, kernel) for name, params, kernels in RUNS for kernel in kernels]
ACTING = ("clipped_high", "clipped_low", "masked_high", "masked_low")


def test_every_built_in_objective_is_tested_here() -> None:
    built_in = {name for name in OBJECTIVES.names() if "verl_uae.flow" in get_objective(name).function.__module__}
    assert {name for name, _, _ in RUNS} | {name for name, _ in FORWARD_RUNS} == built_in


@pytest.mark.parametrize(("name", "params", "kernel"), CASES)
def test_before_the_first_update_the_ratio_is_exactly_one_and_there_is_a_gradient(name, params, kernel) -> None:
    """A sampled step, scored again with unchanged weights: no clip, no mask, no divergence, and still a gradient."""
    parameter = torch.tensor(0.3, requires_grad=True)
    objective = bind_objective(name, params, kernel=kernel)
    for inputs in sampled(kernel, parameter):
        output = objective(inputs)
        assert torch.equal(output.metrics["ratio"], torch.ones(6))
        assert torch.equal(output.metrics["k"], torch.zeros(6))
        acting = [metric for metric in ACTING if metric in output.metrics]
        assert len(acting) == 2 and all(torch.equal(output.metrics[each], torch.zeros(6)) for each in acting)
        scale = inputs.step_size if name == "grpo_guard" else 1.0
        assert torch.allclose(output.loss_B, -inputs.advantage_B / scale, rtol=1e-6)
        (gradient,) = torch.autograd.grad(output.loss_B.mean(), parameter)
        assert torch.isfinite(gradient) and gradient.abs() > 1e-4


@pytest.mark.parametrize(("name", "params"), FORWARD_RUNS)
def test_before_the_first_update_a_forward_objective_is_at_the_old_policy_and_has_a_gradient(name, params) -> None:
    objective = bind_objective(name, params)
    inputs = with_group_means(objective, forward_inputs(change=0.0, dtype=torch.float32), [0] * 8)
    output = objective(inputs)
    at_rest = {"old_distance": 0.0, "implicit_reward": 0.0, "likelihood_ratio": 1.0, "likelihood_clipped": 0.0}
    shown = [metric for metric in at_rest if metric in output.metrics]
    assert shown and all(torch.equal(output.metrics[each], torch.full((8,), at_rest[each])) for each in shown)
    if name == "nft":
        assert torch.equal(output.metrics["positive_error"], output.metrics["negative_error"])
    (gradient,) = torch.autograd.grad(output.loss_B.mean(), inputs.velocity_BCHW)
    assert gradient.flatten(1).norm(dim=1).min() > 1e-4


@pytest.mark.parametrize(("name", "params", "kernel"), CASES)
@pytest.mark.parametrize("limit", [1e-4, 1.0 - 1e-3])
def test_gradient_agrees_with_finite_differences(name, params, kernel, limit) -> None:
    """fp64, relative 1e-6, with the trust region acting on some samples and with one that acts on none."""
    case = Transitions(kernel)
    limits = {"threshold": limit} if name == "dppo" else {"clip_low": limit, "clip_high": limit}
    objective = bind_objective(name, {**params, **limits})
    velocity = case.nearby(0.1).requires_grad_()
    metrics = objective(case(velocity)).metrics
    acting = sum(metrics[metric] for metric in ACTING if metric in metrics)
    assert acting.sum() == 0 if limit > 0.5 else 0 < acting.sum() < len(acting)
    assert torch.autograd.gradcheck(lambda v: objective(case(v)).loss_B, velocity, eps=1e-6, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(("name", "params", "kernel"), CASES)
def test_a_sample_does_not_depend_on_its_batch(name, params, kernel) -> None:
    """Permuted or split, every loss, metric and gradient is the same number."""
    case = Transitions(kernel)
    inputs = case(case.nearby(0.05))
    objective = bind_objective(name, params)
    whole = objective(inputs)
    for positions in (torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]), torch.arange(3), torch.arange(3, 8), torch.tensor([4])):
        part = objective(rows(inputs, positions))
        assert torch.equal(part.loss_B, whole.loss_B[positions])
        for metric, value in whole.metrics.items():
            assert torch.equal(part.metrics[metric], value[positions])


@pytest.mark.parametrize(("name", "params"), FORWARD_RUNS)
def test_a_forward_sample_does_not_depend_on_its_batch(name, params) -> None:
    inputs = forward_inputs()
    objective = bind_objective(name, params)
    whole = objective(inputs)
    for positions in (torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]), torch.arange(3), torch.tensor([4])):
        part = objective(rows(inputs, positions))
        assert torch.equal(part.loss_B, whole.loss_B[positions])


@pytest.mark.parametrize(("name", "params"), FORWARD_RUNS)
def test_only_the_policy_has_a_gradient_and_half_precision_is_for_velocities_only(name, params) -> None:
    inputs, objective = forward_inputs(dtype=torch.float32), bind_objective(name, params)
    others = {
        field: getattr(inputs, field).clone().requires_grad_()
        for field in ("old_velocity_BCHW", "reference_velocity_BCHW", "group_mean_B")
    }
    output = objective(dataclasses.replace(inputs, **others))
    assert not any(value.requires_grad for value in output.metrics.values())
    found = torch.autograd.grad(output.loss_B.sum(), list(others.values()), allow_unused=True)
    # The mean of a group is a number to the objective: what computes it gives it no gradient.
    assert found[:2] == (None, None)
    names = ("velocity_BCHW", "old_velocity_BCHW", "reference_velocity_BCHW")
    half = {field: getattr(inputs, field).bfloat16() for field in names}
    wide = {field: value.float() for field, value in half.items()}
    losses = [objective(dataclasses.replace(inputs, **each)).loss_B for each in (half, wide)]
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)
    with pytest.raises(TypeError, match="float32"):
        objective(dataclasses.replace(inputs, x0_BCHW=inputs.x0_BCHW.bfloat16()))


@pytest.mark.parametrize("name", ["flow_grpo", "dppo", "grpo_guard"])
def test_nothing_pulls_on_the_old_policy_or_the_sample(name) -> None:
    case = Transitions()
    case.old_mean.requires_grad_(), case.x_next.requires_grad_(), case.advantage.requires_grad_()
    velocity = case.nearby(0.05).requires_grad_()
    inputs = case(velocity)
    output = bind_objective(name)(inputs)
    assert not any(value.requires_grad for value in output.metrics.values())
    gradient = torch.autograd.grad(output.loss_B.sum(), inputs.old_mean_BCHW, allow_unused=True)[0]
    assert gradient is None or not gradient.any()


@pytest.mark.parametrize("name", ["flow_grpo", "dppo", "grpo_guard", "nft", "awm", "dgpo", "crd"])
def test_declared_needs_are_the_function_s_inputs(name) -> None:
    objective = get_objective(name)
    parameters = inspect.signature(objective.function).parameters
    assert tuple(parameters) == (*objective.needs, *objective.defaults)
