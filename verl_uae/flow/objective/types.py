# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What an objective is given and what it returns.

Shape legend: B samples (one trained transition or one noise level each), C H W latent channels, height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

#: "transition": scores steps the sampler took. "forward": noises the finished latent anew, no steps stored.
Kind = Literal["transition", "forward"]


@dataclass(frozen=True, slots=True)
class TransitionInputs:
    """One denoising step of B samples, all at the same place of the table.

    "old" is the policy that the batch was sampled with, without gradient. Log-probabilities are means over C, H, W
    unless the plan says otherwise (see :func:`verl_uae.flow.kernels.gaussian_log_prob`).
    """

    log_prob_B: Tensor
    """Of ``x_next_BCHW`` under the current policy, with gradient."""
    old_log_prob_B: Tensor
    mean_BCHW: Tensor
    """Mean of the transition under the current policy, with gradient."""
    old_mean_BCHW: Tensor | None
    """None where no objective of the run needs it."""
    x_next_BCHW: Tensor
    """Where the sampler went."""
    std: float
    """Full standard deviation of the transition, > 0; never a diffusion coefficient."""
    step_size: float
    """sigma - sigma_next, > 0."""
    sigma: float
    """Noise level the step starts from, in (0, 1]."""
    kernel: str
    """Name of the kernel the step was drawn with, of :data:`verl_uae.flow.kernels.KERNELS`."""
    advantage_B: Tensor


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """B finished latents, each noised to its own level: x_sigma = (1 - sigma) x_0 + sigma eps."""

    velocity_BCHW: Tensor
    """Of the current policy at ``x_sigma_BCHW``, with gradient."""
    old_velocity_BCHW: Tensor | None
    """Of the old policy at the same place; None where no objective of the run needs it."""
    x0_BCHW: Tensor
    x_sigma_BCHW: Tensor
    sigma_B: Tensor
    """In (0, 1]."""
    noise_BCHW: Tensor
    advantage_B: Tensor
    reference_velocity_BCHW: Tensor | None = None
    """Of the policy before RL at the same place; None where nothing of the run needs it."""
    group_mean_B: Tensor | None = None
    """Mean of the objective's group figure over the valid samples of each sample's group, at the same place; None
    where the objective has no such figure."""


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """Loss and figures of every sample, before invalid ones are left out and before any average."""

    loss_B: Tensor
    """To be minimised; shape (B,), with gradient."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Name to one number per sample, shape (B,), without gradient; 0/1 where it is a yes or no."""
