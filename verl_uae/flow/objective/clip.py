# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Flow-GRPO: PPO's clipped ratio on the Gaussian transitions.

Shape legend: B samples, C H W latent channels, height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from verl_uae.flow.divergence import transition_kl
from verl_uae.flow.objective.registry import check_number, register_objective
from verl_uae.flow.objective.types import ObjectiveOutput


def check_clip(params: Mapping[str, Any]) -> None:
    """Refuse clip widths outside (0, 1) below and (0, inf) above.

    Raises:
        ConfigError: with the parameter's key.
    """
    check_number(params, "clip_low", at_most=1.0)
    check_number(params, "clip_high")


def clipped_loss(
    ratio_B: Tensor, advantage_B: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's pessimistic loss, max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) (Schulman et al. 2017, eq. 7).

    Args:
        ratio_B: probability ratio, with gradient, shape (B,).
        advantage_B: shape (B,).
        clip_low: room below 1.
        clip_high: room above 1.

    Returns:
        The loss, shape (B,), and the metrics ``ratio``, and ``clipped_high`` and ``clipped_low``, which are 1 where the
        clip removes the gradient, the ratio above its room with A > 0, below it with A < 0.
    """
    loss_B = torch.maximum(-advantage_B * ratio_B, -advantage_B * ratio_B.clamp(1.0 - clip_low, 1.0 + clip_high))
    ratio_B = ratio_B.detach()
    return loss_B, {
        "ratio": ratio_B,
        "clipped_high": ((ratio_B > 1.0 + clip_high) & (advantage_B > 0)).to(ratio_B.dtype),
        "clipped_low": ((ratio_B < 1.0 - clip_low) & (advantage_B < 0)).to(ratio_B.dtype),
    }


@register_objective("flow_grpo", check=check_clip)
def flow_grpo(
    log_prob_B: Tensor,
    old_log_prob_B: Tensor,
    mean_BCHW: Tensor,
    old_mean_BCHW: Tensor,
    std: float,
    advantage_B: Tensor,
    *,
    clip_low: float = 1e-4,
    clip_high: float = 1e-4,
) -> ObjectiveOutput:
    """Clipped ratio r = exp(log_prob - old_log_prob) (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470).

    With the mean-reduced log-probability log r is about N(-k, 2 k / D) on the old policy's samples, k being
    :func:`~verl_uae.flow.divergence.transition_kl`. So the widths are a limit on k, not on a probability, which is why
    they are as small as 1e-4 (all steps trained) or 1e-5 (a window of steps), and the limit is one-sided: k pushes r
    below 1, where it stops samples with A < 0 only. Widths for another reduction are other numbers.

    Returns:
        Loss per sample and ``ratio``, ``k``, ``clipped_high``, ``clipped_low``. The means are read for ``k`` alone.
    """
    loss_B, metrics = clipped_loss((log_prob_B - old_log_prob_B).exp(), advantage_B, clip_low, clip_high)
    with torch.no_grad():
        metrics["k"] = transition_kl(mean_BCHW, old_mean_BCHW, std)
    return ObjectiveOutput(loss_B, metrics)
