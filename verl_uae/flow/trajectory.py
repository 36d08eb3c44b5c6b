# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Sample latents under a plan, and score the stochastic steps again under another policy.

Both sides take a step with :func:`~verl_uae.flow.kernels.step` and the plan's coefficients, so the same velocity gives
the same log-probability bit for bit.

Shape legend: B samples, C H W latent channels, height and width, K stochastic steps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from verl_uae.flow.kernels import Step, require_fp32, step, transition_mean
from verl_uae.flow.ode import Velocity
from verl_uae.flow.plan import SamplingPlan

#: Standard normal noise of the step with a given index, shape (B, C, H, W), fp32. Must not be the initial noise.
StepNoise = Callable[[int], Tensor]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What sampling leaves behind: the result, and all that the stochastic steps need to be scored again.

    Position k belongs to step ``plan.window[k]``. All fp32; store them so, since a rounded ``x_next`` has another
    log-probability than the one recorded here.
    """

    final_BCHW: Tensor
    """Latent at the last noise level."""
    x_BKCHW: Tensor
    """Latents the stochastic steps start from."""
    x_next_BKCHW: Tensor
    """Latents they lead to."""
    mean_BKCHW: Tensor
    """Means of the transitions."""
    log_prob_BK: Tensor
    """Log-probabilities of ``x_next_BKCHW``, reduced over C, H, W as the plan says."""

    def rows(self, rows: slice) -> Trajectory:
        """Some of the samples, in the same memory."""
        return Trajectory(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """The samples of all parts, in order, in memory of their own."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class Twins:
    """Which rows are one latent under one condition until their first stochastic step: a prefix that a group can share,
    as in BranchGRPO (arXiv 2509.06040)."""

    first: tuple[int, ...]
    """A row of each kind, in rising order of kinds."""
    kind: tuple[int, ...]
    """Of every row, a position in ``first``."""

    @classmethod
    def of(cls, names: Sequence[Hashable], valid: Sequence[bool] = ()) -> Twins:
        """Rows with the same name are twins.

        Args:
            names: of the rows.
            valid: whether a row's latent and condition are there; none: all are. The others stand for no row but their
                own kind's where none is valid.
        """
        kinds: dict[Hashable, int] = {}
        first: list[int] = []
        for row, name in enumerate(names):
            number = kinds.setdefault(name, len(first))
            if number == len(first):
                first.append(row)
            elif valid and valid[row] and not valid[first[number]]:
                first[number] = row
        return cls(tuple(first), tuple(kinds[name] for name in names))

    def velocity(self, of_first: Velocity) -> Velocity:
        """Of all rows, given that of the rows ``first``; its gradient is the sum over the twins."""

        def velocity(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            first = torch.tensor(self.first).to(x_BCHW.device, non_blocking=True)
            rows = of_first(x_BCHW.index_select(0, first), sigma_B.index_select(0, first)).unbind()
            # Not by an index: its gradient is summed in no fixed order on a GPU.
            return torch.stack([rows[number] for number in self.kind])

        return velocity


@torch.no_grad()
def sample_trajectory(
    velocity: Velocity,
    noise_BCHW: Tensor,
    plan: SamplingPlan,
    step_noise: StepNoise,
    prefix: Velocity | None = None,
) -> Trajectory:
    """Draw latents: Euler steps outside the plan's window, stochastic ones inside.

    With an empty window this is :func:`verl_uae.flow.ode.euler`, bit for bit.

    Args:
        velocity: the policy, guidance included.
        noise_BCHW: latent at ``plan.sigmas[0]``, shape (B, C, H, W), fp32; the result is on its device.
        plan: how to sample.
        step_noise: called once for each step of the window, in rising order.
        prefix: the policy up to the first step of the window, this one included, where it can be had for less: see
            :class:`Twins`. None: ``velocity``.

    Raises:
        TypeError: a latent or noise is not fp32.
        ValueError: shapes differ.
    """
    require_fp32(noise_BCHW=noise_BCHW)
    x_BCHW = noise_BCHW
    starts: list[Tensor] = []
    steps: list[Step] = []
    for index, sigma in enumerate(plan.sigmas[:-1]):
        c = plan.coefficients(index)
        field = velocity if prefix is None or steps else prefix
        v_BCHW = field(x_BCHW, _sigma_B(sigma, x_BCHW))
        if index in plan.window:
            starts.append(x_BCHW)
            noise = step_noise(index).to(x_BCHW.device)
            steps.append(step(c, x_BCHW, v_BCHW, noise_BCHW=noise, reduction=plan.reduction))
            x_BCHW = steps[-1].x_next_BCHW
        else:
            x_BCHW = transition_mean(c, x_BCHW, v_BCHW)
    none_BKCHW = noise_BCHW.new_empty((noise_BCHW.shape[0], 0, *noise_BCHW.shape[1:]))
    if not steps:
        return Trajectory(x_BCHW, none_BKCHW, none_BKCHW, none_BKCHW, noise_BCHW.new_empty((len(noise_BCHW), 0)))
    return Trajectory(
        final_BCHW=x_BCHW,
        x_BKCHW=torch.stack(starts, dim=1),
        x_next_BKCHW=torch.stack([taken.x_next_BCHW for taken in steps], dim=1),
        mean_BKCHW=torch.stack([taken.mean_BCHW for taken in steps], dim=1),
        log_prob_BK=torch.stack([taken.log_prob_B for taken in steps], dim=1),
    )


def score_step(velocity: Velocity, x_BCHW: Tensor, x_next_BCHW: Tensor, plan: SamplingPlan, index: int) -> Step:
    """Score a recorded step under a policy, with gradient through its velocity.

    With a window the velocity drives the deterministic steps too, and this gradient does not see them: it belongs to
    the policy of the window's steps, with the other steps as part of the environment.

    Args:
        velocity: the policy.
        x_BCHW: latent the step started from, shape (B, C, H, W), fp32.
        x_next_BCHW: latent it led to, same shape, fp32.
        plan: the plan it was drawn with.
        index: number of the denoising step, one of ``plan.window``.

    Raises:
        TypeError: a latent is not fp32.
        ValueError: the step is outside the window, hence deterministic, or shapes differ.
    """
    if index not in plan.window:
        raise ValueError(f"step {index} is not in the window {plan.window}: it is deterministic")
    v_BCHW = velocity(x_BCHW, _sigma_B(plan.sigmas[index], x_BCHW))
    return step(plan.coefficients(index), x_BCHW, v_BCHW, x_next_BCHW=x_next_BCHW, reduction=plan.reduction)


def _sigma_B(sigma: float, x_BCHW: Tensor) -> Tensor:
    return torch.full((x_BCHW.shape[0],), sigma, dtype=torch.float32, device=x_BCHW.device)
