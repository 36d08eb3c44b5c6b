# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO-Guard: a ratio without bias and with the same gradient at every step, clipped.

Shape legend: B samples, C H W latent channels, height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_uae.flow.divergence import transition_kl
from verl_uae.flow.objective.clip import check_clip, clipped_loss
from verl_uae.flow.objective.registry import register_objective
from verl_uae.flow.objective.types import ObjectiveOutput


@register_objective("grpo_guard", kernels=("flow_sde",), check=check_clip)
def grpo_guard(
    mean_BCHW: Tensor,
    old_mean_BCHW: Tensor,
    x_next_BCHW: Tensor,
    std: float,
    step_size: float,
    advantage_B: Tensor,
    *,
    clip_low: float = 2e-6,
    clip_high: float = 2e-6,
) -> ObjectiveOutput:
    """Clipped loss on r' = exp(mean_D(z d)), divided by the step's size (GRPO-Guard, arXiv 2510.22319, RatioNorm).

    d = mean - old_mean and z = (x_next - old_mean) / std. The published log r' = (log r + k) std, with k the sample's
    own :func:`~verl_uae.flow.divergence.transition_kl` and log r mean-reduced, equals mean_D(z d); it is computed as
    that, because the difference of two log-probabilities cancels in fp32. Its mean under the old policy is 0. After
    division by the step's size the gradient on the velocity is (1 + a^2 / 2) A mean_D(z dv), the same at every step;
    that follows from the mean of ``flow_sde`` and from no other kernel.

    Returns:
        Loss per sample and ``ratio`` (r'), ``k``, ``clipped_high``, ``clipped_low``.
    """
    z_BCHW = ((x_next_BCHW - old_mean_BCHW) / std).detach()
    log_ratio_B = (z_BCHW * (mean_BCHW - old_mean_BCHW.detach())).flatten(1).mean(1)
    loss_B, metrics = clipped_loss(log_ratio_B.exp(), advantage_B, clip_low, clip_high)
    with torch.no_grad():
        metrics["k"] = transition_kl(mean_BCHW, old_mean_BCHW, std)
    return ObjectiveOutput(loss_B / step_size, metrics)
