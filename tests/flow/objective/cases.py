# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs of objectives for the tests: in fp64 with a reference log-probability, in fp32 through the real sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributions import Normal

from verl_uae.flow.kernels import coefficients
from verl_uae.flow.matching import forward_noise
from verl_uae.flow.objective import ForwardInputs, TransitionInputs
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import sample_trajectory, score_step

SHAPE = (2, 3, 4)
STEP = {"flow_sde": 0.7, "cps": 0.8, "dance": 0.3}
#: Every way to run a transition objective: name, parameters, kernels.
RUNS = [
    ("flow_grpo", {}, ("flow_sde", "cps", "dance")),
    *(("dppo", {"direction": direction}, ("flow_sde", "cps", "dance")) for direction in ("ratio", "exact", "debiased")),
    ("grpo_guard", {}, ("flow_sde",)),
]
#: Every way to run a forward objective.
FORWARD_RUNS = [
    ("nft", {}),
    *(("awm", {"weighting": each}) for each in ("uniform", "sigma", "sigma_squared", "huber", "ghuber")),
    ("dgpo", {"reference": "old"}),
    ("dgpo", {"reference": "base", "beta": 100.0}),
    ("crd", {}),
]


class Transitions:
    """B transitions of one kernel from sigma 0.75, in fp64; call it with the current velocity."""

    def __init__(self, kernel: str = "flow_sde", batch: int = 8, seed: int = 0, sigma: float = 0.75) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x, self.old_velocity, noise = torch.randn(3, batch, *SHAPE, generator=generator, dtype=torch.float64)
        self.kernel, self.sigma, self.sigma_next = kernel, sigma, sigma - 0.1
        self.c = coefficients(kernel, sigma, sigma - 0.1, STEP[kernel], 0.9)
        self.old_mean = self.mean(self.old_velocity)
        self.noise = noise
        self.x_next = self.old_mean + self.c.std * noise
        self.advantage = torch.linspace(-2.0, 2.0, batch, dtype=torch.float64)

    def mean(self, velocity: Tensor) -> Tensor:
        return self.c.x * self.x + self.c.v * velocity

    def log_prob(self, velocity: Tensor) -> Tensor:
        return Normal(self.mean(velocity), self.c.std).log_prob(self.x_next).mean(dim=(1, 2, 3))

    def nearby(self, size: float, seed: int = 1) -> Tensor:
        """A velocity that is ``size`` (root mean square) away from the old one."""
        generator = torch.Generator().manual_seed(seed)
        change = torch.randn(self.x.shape, generator=generator, dtype=torch.float64)
        return self.old_velocity + size * change

    def __call__(self, velocity: Tensor) -> TransitionInputs:
        return TransitionInputs(
            log_prob_B=self.log_prob(velocity),
            old_log_prob_B=self.log_prob(self.old_velocity),
            mean_BCHW=self.mean(velocity),
            old_mean_BCHW=self.old_mean,
            x_next_BCHW=self.x_next,
            std=self.c.std,
            step_size=self.sigma - self.sigma_next,
            sigma=self.sigma,
            kernel=self.kernel,
            advantage_B=self.advantage,
        )


def forward_inputs(batch: int = 8, change: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Noised results with the velocities of an old policy, of one that differs by ``change``, and of a reference."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise, old, delta = torch.randn(4, batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    sigma = torch.linspace(0.2, 0.9, batch, dtype=dtype)
    velocity = (old + change * delta).requires_grad_()
    advantage = torch.linspace(-6.0, 6.0, batch, dtype=dtype)
    reference = torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    mean = torch.zeros(batch, dtype=dtype)
    return ForwardInputs(velocity, old, x0, forward_noise(x0, noise, sigma), sigma, noise, advantage, reference, mean)


def with_group_means(objective, inputs: ForwardInputs, group: Sequence[int]) -> ForwardInputs:
    """The inputs with the means of the objective's figure over the groups, where it has one."""
    if not objective.grouped:
        return inputs
    figure = objective.group_figure(inputs).tolist()
    members = {name: [value for value, other in zip(figure, group, strict=True) if other == name] for name in group}
    means = [sum(members[name]) / len(members[name]) for name in group]
    return dataclasses.replace(inputs, group_mean_B=torch.tensor(means, dtype=inputs.advantage_B.dtype))


def rows(inputs, positions: Tensor):
    """The same inputs with other rows."""
    values = {entry.name: getattr(inputs, entry.name) for entry in dataclasses.fields(inputs)}
    return type(inputs)(**{k: v[positions] if isinstance(v, Tensor) else v for k, v in values.items()})


def sampled(kernel: str, parameter: Tensor, batch: int = 6) -> Iterator[TransitionInputs]:
    """Steps of a real trajectory in fp32, scored again with the same velocity, one input per step of the window."""
    generator = torch.Generator().manual_seed(5)
    advantage = torch.linspace(-2.0, 2.0, batch)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(parameter * x) * sigma[:, None, None, None] + parameter

    plan = SamplingPlan((1.0, 0.9375, 0.75, 0.5, 0.0), kernel, STEP[kernel], (1, 2))
    noise = torch.randn(3, batch, *SHAPE, generator=generator)
    trajectory = sample_trajectory(velocity, noise[0], plan, lambda index: noise[index])
    for k, index in enumerate(plan.window):
        x, x_next = trajectory.x_BKCHW[:, k], trajectory.x_next_BKCHW[:, k]
        step = score_step(velocity, x, x_next, plan, index)
        yield TransitionInputs(
            step.log_prob_B,
            trajectory.log_prob_BK[:, k],
            step.mean_BCHW,
            trajectory.mean_BKCHW[:, k],
            x_next,
            plan.coefficients(index).std,
            plan.sigmas[index] - plan.sigmas[index + 1],
            plan.sigmas[index],
            kernel,
            advantage,
        )
