# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A toy flow learns: sampler, score, advantage and objective together move the results to where the reward is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.flow.objective.cases import with_group_means
from verl_uae.flow.advantage import group_advantage
from verl_uae.flow.matching import draw_sigmas, forward_noise
from verl_uae.flow.objective import ForwardInputs, TransitionInputs, bind_objective
from verl_uae.flow.ode import euler
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import sample_trajectory, score_step

SHAPE = (1, 2, 2)
MEAN, VARIANCE = 0.5, 0.25
TARGET = torch.tensor([[[1.5, -0.5], [1.25, 0.0]]])
SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)
BATCH, ROLLOUTS, UPDATES_PER_ROLLOUT, RATE = 128, 100, 2, 0.012


def _velocity(offset: Tensor):
    """The exact field of data N(MEAN, VARIANCE), plus what is learnt."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None, None, None]
        a = 1.0 - s
        slope = (s - a * VARIANCE) / (a**2 * VARIANCE + s**2)
        return -MEAN + slope * (x - a * MEAN) + offset

    return velocity


class Learner:
    """Two updates per rollout of one group; the old policy is the one that drew the rollout."""

    def __init__(self, name: str, params: dict, plan: SamplingPlan) -> None:
        self.objective, self.plan = bind_objective(name, params, kernel=plan.kernel), plan
        self.offset = torch.zeros(SHAPE, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.offset], lr=RATE)
        self.generator = torch.Generator().manual_seed(7)

    def normal(self) -> Tensor:
        return torch.randn(BATCH, *SHAPE, generator=self.generator)

    def rollout(self) -> float:
        old = _velocity(self.offset.detach().clone())
        drawn = sample_trajectory(old, self.normal(), self.plan, lambda _: self.normal())
        reward = -(drawn.final_BCHW - TARGET).square().mean((1, 2, 3))
        advantage, _ = group_advantage(reward, torch.ones(BATCH, dtype=torch.bool), [0] * BATCH, clamp=5.0)
        for _ in range(UPDATES_PER_ROLLOUT):
            losses = self.forward(drawn, old, advantage) if self.objective.objective.kind == "forward" else None
            losses = losses or [self.transition(drawn, k, advantage) for k in range(len(self.plan.window))]
            self.optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            self.optimizer.step()
        return reward.mean().item()

    def transition(self, drawn, k: int, advantage: Tensor) -> Tensor:
        index, x_next = self.plan.window[k], drawn.x_next_BKCHW[:, k]
        step = score_step(_velocity(self.offset), drawn.x_BKCHW[:, k], x_next, self.plan, index)
        inputs = TransitionInputs(
            step.log_prob_B,
            drawn.log_prob_BK[:, k],
            step.mean_BCHW,
            drawn.mean_BKCHW[:, k],
            x_next,
            self.plan.coefficients(index).std,
            self.plan.sigmas[index] - self.plan.sigmas[index + 1],
            self.plan.sigmas[index],
            self.plan.kernel,
            advantage,
        )
        return self.objective(inputs).loss_B.mean()

    def forward(self, drawn, old, advantage: Tensor) -> list[Tensor]:
        sigma = torch.cat([draw_sigmas(self.plan.sigmas, 1, self.generator) for _ in range(BATCH)])
        if self.objective.grouped:
            sigma = sigma[:1].expand(BATCH)
        noise = self.normal()
        x_sigma = forward_noise(drawn.final_BCHW, noise, sigma)
        velocity, old_velocity = _velocity(self.offset)(x_sigma, sigma), old(x_sigma, sigma)
        inputs = ForwardInputs(velocity, old_velocity, drawn.final_BCHW, x_sigma, sigma, noise, advantage)
        return [self.objective(with_group_means(self.objective, inputs, [0] * BATCH)).loss_B.mean()]


CPS = SamplingPlan(SIGMAS, "cps", 0.8, (0, 1, 2))
FLOW_SDE = SamplingPlan(SIGMAS, "flow_sde", 0.7, (0, 1, 2))
RUNS = [
    # Four latent dimensions instead of 65,536: the ratio's noise needs a wider clip.
    ("flow_grpo", {"clip_low": 0.01, "clip_high": 0.01}, CPS),
    ("flow_grpo", {"clip_low": 0.01, "clip_high": 0.01}, FLOW_SDE),
    *(("dppo", {"direction": direction}, CPS) for direction in ("ratio", "exact", "debiased")),
    ("dppo", {}, FLOW_SDE),
    ("grpo_guard", {"clip_low": 0.002, "clip_high": 0.002}, FLOW_SDE),
    ("nft", {}, dataclasses.replace(CPS, window=())),
    ("nft", {"beta": 0.3}, dataclasses.replace(CPS, window=())),
    ("awm", {}, dataclasses.replace(CPS, window=())),
    ("awm", {"weighting": "uniform"}, dataclasses.replace(CPS, window=())),
    # The ratio's clip is for many dimensions too.
    ("dgpo", {"beta": 100.0, "clip_low": 0.1, "clip_high": 0.1}, dataclasses.replace(CPS, window=())),
    ("crd", {}, dataclasses.replace(CPS, window=())),
]


@pytest.mark.parametrize(("name", "params", "plan"), RUNS)
def test_two_hundred_updates_raise_the_reward_and_move_the_mean_to_its_peak(name, params, plan) -> None:
    learner = Learner(name, params, plan)
    fixed = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(1))

    def mean() -> Tensor:
        with torch.no_grad():
            return euler(_velocity(learner.offset), fixed, torch.tensor(SIGMAS)).mean(0)

    start = (mean() - TARGET).abs().max()
    rewards = torch.tensor([learner.rollout() for _ in range(ROLLOUTS)])
    quarters = rewards.view(4, -1).mean(1)
    end = (mean() - TARGET).abs().max()
    # Means over 25 rollouts: a rise at first, and no fall beyond sampling noise once the peak is reached.
    assert quarters[1] > quarters[0] + 0.1 and (quarters.diff() > -0.01).all()
    assert start > 0.9 and end < 0.1
