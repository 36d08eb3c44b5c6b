# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Flow-DPPO: a trust region on the exact divergence of the transitions instead of a clipped ratio.

Shape legend: B samples, C H W latent channels, height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from verl_uae.flow.divergence import transition_kl
from verl_uae.flow.objective.registry import check_choice, check_number, register_objective
from verl_uae.flow.objective.types import ObjectiveOutput

DIRECTIONS = ("ratio", "exact", "debiased")


def check_dppo(params: Mapping[str, Any]) -> None:
    """Refuse a threshold that is not positive and an unknown direction.

    Raises:
        ConfigError: with the parameter's key.
    """
    check_number(params, "threshold")
    check_choice(params, "direction", DIRECTIONS)


@register_objective("dppo", check=check_dppo)
def dppo(
    log_prob_B: Tensor,
    old_log_prob_B: Tensor,
    mean_BCHW: Tensor,
    old_mean_BCHW: Tensor,
    x_next_BCHW: Tensor,
    std: float,
    advantage_B: Tensor,
    *,
    threshold: float = 5e-6,
    direction: str = "ratio",
) -> ObjectiveOutput:
    """-A r, zero iff k >= threshold and the sample pushes the policy further away (Flow-DPPO, arXiv 2606.11025).

    k is :func:`~verl_uae.flow.divergence.transition_kl`: exact, free of sampling noise, per sample and per latent
    dimension, so one threshold means the same at every step and size of picture.

    Args:
        log_prob_B: of the step under the current policy, shape (B,).
        old_log_prob_B: under the policy that sampled it.
        mean_BCHW: mean of the step under the current policy.
        old_mean_BCHW: under the policy that sampled it.
        x_next_BCHW: where the step went.
        std: full standard deviation of the transition.
        advantage_B: shape (B,).
        threshold: largest k without a mask, > 0. The default is for the CPS kernel. Published values do not carry
            over: programs differ by a factor of 1.4 to 28 in what they call the standard deviation. Sweep it.
        direction: what "further away" is; see :func:`moves_away`.

    Returns:
        Loss per sample and ``ratio``, ``k``, ``masked_high`` (masked with A > 0), ``masked_low`` (with A < 0).
    """
    ratio_B = (log_prob_B - old_log_prob_B).exp()
    with torch.no_grad():
        k_B = transition_kl(mean_BCHW, old_mean_BCHW, std)
        away_B = moves_away(direction, ratio_B, mean_BCHW, old_mean_BCHW, x_next_BCHW, advantage_B)
        masked_B = (k_B >= threshold) & away_B
    loss_B = torch.where(masked_B, torch.zeros_like(ratio_B), -advantage_B * ratio_B)
    metrics = {
        "ratio": ratio_B.detach(),
        "k": k_B,
        "masked_high": (masked_B & (advantage_B > 0)).to(ratio_B.dtype),
        "masked_low": (masked_B & (advantage_B < 0)).to(ratio_B.dtype),
    }
    return ObjectiveOutput(loss_B, metrics)


def moves_away(
    direction: str,
    ratio_B: Tensor,
    mean_BCHW: Tensor,
    old_mean_BCHW: Tensor,
    x_next_BCHW: Tensor,
    advantage_B: Tensor,
) -> Tensor:
    """Whether a sample's update takes the policy further from the old one.

    With d = mean - old_mean, z = (x_next - old_mean) / std and the mean-reduced ratio,
    log r = mean_D(z d) / std - k. The three directions are

    * ``ratio``: A and r - 1 have the same sign; the published test. k shifts r to the left, so it masks mostly
      samples with A < 0, the more the larger the picture.
    * ``exact``: A (log r - k) > 0, that is A mean_D((x_next - mean) d) > 0: the sample's own gradient on the mean
      increases k.
    * ``debiased``: A (log r + k) > 0, that is A mean_D((x_next - old_mean) d) > 0: as ``ratio`` without the shift.

    The last two are computed from the means, since log r - k cancels in fp32 and holds for one reduction only.

    Returns:
        bool, shape (B,); False where A is 0.

    Raises:
        ValueError: unknown direction.
    """
    if direction == "ratio":
        return ((ratio_B > 1.0) & (advantage_B > 0)) | ((ratio_B < 1.0) & (advantage_B < 0))
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    origin_BCHW = mean_BCHW if direction == "exact" else old_mean_BCHW
    pull_B = ((x_next_BCHW - origin_BCHW) * (mean_BCHW - old_mean_BCHW)).flatten(1).mean(1)
    return ((pull_B > 0) & (advantage_B > 0)) | ((pull_B < 0) & (advantage_B < 0))
