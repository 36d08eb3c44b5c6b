# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""An objective usable by path: the policy gradient with a penalty on the divergence in place of a clip or a mask.

    python -m verl.trainer.main_ppo --config-name uae_u4g ... \\
        decoder/objective=custom uae.u4g.objective.name=soft_region \\
        uae.u4g.objective.path=examples/custom_objective.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from verl_uae.flow.divergence import transition_kl
from verl_uae.flow.objective import ObjectiveOutput, register_objective
from verl_uae.flow.objective.registry import check_number


def check(params: Mapping[str, Any]) -> None:
    """Called before Ray starts; raises `ConfigError` for a weight that is not positive."""
    check_number(params, "weight")


@register_objective("soft_region", check=check)
def soft_region(
    log_prob_B: Tensor,
    old_log_prob_B: Tensor,
    mean_BCHW: Tensor,
    old_mean_BCHW: Tensor,
    std: float,
    advantage_B: Tensor,
    *,
    weight: float = 300.0,
) -> ObjectiveOutput:
    """-A r + weight k, per sample.

    With d = mean - old_mean and z the noise of the step, the mean-reduced log r is mean_D(z d) / std - k and
    k = mean_D(d^2) / (2 std^2). A mean that could move freely stops at d = A z std / weight, where k is
    A^2 / (2 weight^2): 5.6e-6 for A = 1 and the default weight.

    Args:
        log_prob_B: of the step under the current policy, shape (B,), with gradient.
        old_log_prob_B: under the policy that sampled it.
        mean_BCHW: mean of the step under the current policy, with gradient.
        old_mean_BCHW: under the policy that sampled it.
        std: of the transition.
        advantage_B: shape (B,).
        weight: of the penalty, above 0.

    Returns:
        Loss per sample, and the figures ``ratio`` and ``k``, logged as ``train/ratio/...`` and ``train/k/...``.
    """
    ratio_B = torch.exp(log_prob_B - old_log_prob_B)
    k_B = transition_kl(mean_BCHW, old_mean_BCHW, std)
    return ObjectiveOutput(-advantage_B * ratio_B + weight * k_B, {"ratio": ratio_B.detach(), "k": k_B.detach()})
