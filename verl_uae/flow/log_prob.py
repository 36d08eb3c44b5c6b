# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Log-probability of one Gaussian transition, reduced over the latent dimensions of a sample.

Shape legend: B samples, C H W latent channels, height and width; D = C * H * W.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verl_uae.flow.config import REDUCTIONS, Reduction


def gaussian_log_prob(x_next_BCHW: Tensor, mean_BCHW: Tensor, std: float, reduction: Reduction = "mean") -> Tensor:
    """Log-density of ``x_next`` under N(mean, std^2) with independent dimensions.

    Gradients flow through ``mean`` alone; ``x_next`` is what happened and is detached.

    Args:
        x_next_BCHW: the latent the transition led to, shape (B, C, H, W), fp32.
        mean_BCHW: mean of the transition, same shape, fp32.
        std: standard deviation of the whole transition, > 0, in units of the latent.
        reduction: over C, H, W.

            * ``mean``: mean of the normalised log-density -(x' - mean)^2 / (2 std^2) - log std - log(2 pi) / 2 in nats
              per dimension (Flow-GRPO, arXiv 2505.05470, and every implementation of it). The ratio of two policies
              is then the geometric mean over dimensions.
            * ``sum``: D times ``mean``, the log-density proper. For mathematics; as a ratio it overflows.
            * ``raw``: -mean((x' - mean)^2), without any normalisation, as the published code of Flow-CPS (arXiv
              2509.05952) has it: 2 std^2 times the ``mean`` up to a constant, which weighs late steps less.

    Returns:
        Shape (B,), fp32.

    Raises:
        TypeError: a tensor is not fp32: bf16 keeps three digits of a number of which the sixth matters.
        ValueError: shapes differ, ``std`` is not positive, or ``reduction`` is unknown.
    """
    require_fp32(x_next_BCHW=x_next_BCHW, mean_BCHW=mean_BCHW)
    if x_next_BCHW.shape != mean_BCHW.shape:
        raise ValueError(f"x_next has shape {tuple(x_next_BCHW.shape)}, its mean {tuple(mean_BCHW.shape)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not 0.0 < std < math.inf:
        raise ValueError(f"a transition needs a positive std to have a log-probability, got {std}")
    squared_B = (x_next_BCHW.detach() - mean_BCHW).square().flatten(1).mean(1)
    if reduction == "raw":
        return -squared_B
    log_prob_B = -squared_B / (2.0 * std**2) - (math.log(std) + 0.5 * math.log(2.0 * math.pi))
    return log_prob_B * mean_BCHW[0].numel() if reduction == "sum" else log_prob_B


def require_fp32(**tensors: Tensor) -> None:
    """Refuse tensors of another dtype than fp32, by name.

    Half precision loses the digits a policy ratio is made of, and fp64 on one side only makes the two sides differ.

    Raises:
        TypeError: naming the first tensor that is not fp32.
    """
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be torch.float32, got {tensor.dtype}")
