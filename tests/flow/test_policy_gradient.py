# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The score-function gradient of the whole chain against its closed form.

On Gaussian data the chain is affine, so with a velocity offset delta_i at step i and the final latent as reward,
d E[R] / d delta_i is a product of coefficients. One latent dimension, hence mean and sum reductions are one here.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch

from tests.flow.gaussian_toy import PUBLISHED, exact_velocity, propagate, randn, velocity_line
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.trajectory import sample_trajectory, score_step

TABLE = tuple(sigma_schedule(10, 3.0).tolist())
SAMPLES = 400_000
SHAPE = (SAMPLES, 1, 1, 1)
ALL_BUT_TWO = tuple(range(8))


def exact_gradient(plan: SamplingPlan) -> list[float]:
    """d E[x_final] / d delta_i for every step, deterministic ones too."""
    steps = [plan.coefficients(i) for i in range(plan.num_steps)]
    factors = [c.x + c.v * velocity_line(sigma)[0] for c, sigma in zip(steps, plan.sigmas, strict=False)]
    return [c.v * math.prod(factors[i + 1 :]) for i, c in enumerate(steps)]


@functools.cache
def estimates(kernel, level: float, window: tuple[int, ...], reduction="sum") -> dict[int, tuple[float, float]]:
    """Mean and standard error of A * d log p / d delta_i, of the code's own sampler and scores."""
    plan = SamplingPlan(TABLE, kernel, level, window, reduction=reduction)
    drawn = sample_trajectory(
        exact_velocity, randn(*SHAPE, seed=3), plan, lambda index: randn(*SHAPE, seed=100 + index)
    )
    reward_B = drawn.final_BCHW.flatten().double()
    expected_reward, _ = propagate(TABLE, [plan.coefficients(i) for i in range(10)], 0.0, 1.0)
    advantage_B = reward_B - expected_reward
    found = {}
    for k, index in enumerate(window):
        delta_B = torch.zeros(SHAPE, requires_grad=True)
        scored = score_step(
            lambda x, sigma, delta=delta_B: exact_velocity(x, sigma) + delta,
            drawn.x_BKCHW[:, k],
            drawn.x_next_BKCHW[:, k],
            plan,
            index,
        )
        (score_B,) = torch.autograd.grad(scored.log_prob_B.sum(), delta_B)
        product_B = advantage_B * score_B.flatten().double()
        found[index] = product_B.mean().item(), product_B.std().item() / SAMPLES**0.5
    return found


@pytest.mark.parametrize("window", [ALL_BUT_TWO, (1, 2, 3)], ids=["all_but_two", "early"])
@pytest.mark.parametrize(("kernel", "level"), PUBLISHED)
def test_the_policy_gradient_of_every_window_step_is_the_exact_one(kernel, level: float, window) -> None:
    exact = exact_gradient(SamplingPlan(TABLE, kernel, level, window))
    for index, (mean, error) in estimates(kernel, level, window).items():
        assert abs(mean - exact[index]) < 4.0 * error, f"step {index}: {mean} +- {error}, exact {exact[index]}"


def test_the_test_above_has_the_power_to_see_a_wrong_kernel() -> None:
    """Late steps are known to 2 %: a factor of the step size or of the std would be hundreds of errors away."""
    for kernel, level in PUBLISHED:
        mean, error = estimates(kernel, level, ALL_BUT_TWO)[7]
        assert abs(mean) > 25.0 * error


def test_exact_gradients_of_flow_sde_have_their_tabulated_values() -> None:
    exact = exact_gradient(SamplingPlan(TABLE, "flow_sde", 0.7, ALL_BUT_TWO))
    expected = [-0.0040, -0.0086, -0.0128, -0.0186, -0.0276, -0.0424, -0.0694, -0.1243]
    assert exact[:8] == pytest.approx(expected, abs=6e-5)


def test_raw_reduction_weighs_each_step_by_twice_its_variance() -> None:
    """What the unnormalised log-probability of the published CPS code does to the gradient."""
    plan = SamplingPlan(TABLE, "cps", 0.8, ALL_BUT_TWO, reduction="raw")
    exact = exact_gradient(plan)
    found = estimates("cps", 0.8, ALL_BUT_TWO, "raw")
    weights = {index: 2.0 * plan.coefficients(index).std ** 2 for index in ALL_BUT_TWO}
    for index, (mean, error) in found.items():
        assert abs(mean - weights[index] * exact[index]) < 4.0 * error
    # Early steps carry too little signal in this toy for a ratio.
    for index, published in ((6, 0.572), (7, 0.332)):
        assert found[index][0] / exact[index] == pytest.approx(weights[index], rel=0.05)
        assert weights[index] == pytest.approx(published, abs=2e-3)


def test_steps_outside_the_window_have_no_gradient_and_never_enter() -> None:
    """One offset per step, all in one graph: the loss over a window sees its own steps, exactly nothing else."""
    plan, shape = SamplingPlan(TABLE, "flow_sde", 0.7, (2, 3, 4)), (64, 1, 4, 4)
    delta_S = torch.zeros(10, requires_grad=True)

    def velocity(x_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
        return exact_velocity(x_BCHW, sigma_B) + delta_S[TABLE.index(float(sigma_B[0]))]

    drawn = sample_trajectory(velocity, randn(*shape, seed=1), plan, lambda index: randn(*shape, seed=10 + index))
    assert drawn.log_prob_BK.shape == (64, 3)
    scores = [
        score_step(velocity, drawn.x_BKCHW[:, k], drawn.x_next_BKCHW[:, k], plan, index)
        for k, index in enumerate(plan.window)
    ]
    advantage_B = randn(64, seed=5)
    sum((advantage_B * scored.log_prob_B).sum() for scored in scores).backward()
    inside = torch.tensor([index in plan.window for index in range(10)])
    assert torch.equal(delta_S.grad[~inside], torch.zeros(7)) and (delta_S.grad[inside] != 0.0).all()
    for index in range(10):
        if index not in plan.window:
            with pytest.raises(ValueError, match="deterministic"):
                score_step(velocity, drawn.final_BCHW, drawn.final_BCHW, plan, index)
    # E[R] does depend on the other steps: windowed training treats them as part of the environment.
    assert all(abs(gradient) > 0.0 for gradient in exact_gradient(plan))
