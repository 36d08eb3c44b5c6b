# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Noise levels of the rectified flow x_sigma = (1 - sigma) x_0 + sigma * eps.

Shape legend: S denoising steps.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def sigma_schedule(num_steps: int, shift: float = 1.0) -> Tensor:
    """Noise levels from pure noise to data, with one timestep shift.

    sigma = shift * t / (1 + (shift - 1) * t) for t on an even grid from 1 to 0 (Esser et al. 2024,
    arXiv 2403.03206, eq. 23). diffusers' FlowMatchEulerDiscreteScheduler shifts its end points as well and
    therefore bends the tail of the table twice; this table is shifted exactly once.

    Args:
        num_steps: S, number of denoising steps, at least 1.
        shift: resolution-dependent shift, > 0; 1 is the even grid, SD3.5 uses 3.

    Returns:
        sigma, shape (S + 1,), fp32, strictly decreasing from 1 to 0.

    Raises:
        ValueError: if ``num_steps`` or ``shift`` is out of range.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    # fp64 on the way: the table is compared bit for bit between sampler and trainer.
    t = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    return (shift * t / (1.0 + (shift - 1.0) * t)).float()


def schedule_hash(sigmas: Tensor) -> str:
    """Sixteen hex digits that identify a table bit for bit."""
    table = sigmas.detach().cpu().to(torch.float32).contiguous()
    return hashlib.sha256(table.numpy().tobytes()).hexdigest()[:16]
