# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Noise levels of the rectified flow x_sigma = (1 - sigma) x_0 + sigma * eps.

Shape legend: S denoising steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_uae.flow.config import TABLES, Table

#: Smallest time of a model trained on 1000 time steps; where the tables of diffusers end before the final 0.
LAST_TIME = 1e-3


def sigma_schedule(num_steps: int, shift: float = 1.0, table: Table = "even") -> Tensor:
    """Noise levels from pure noise to data.

    One shift is sigma = shift * t / (1 + (shift - 1) * t) (Esser et al. 2024, arXiv 2403.03206, eq. 23). The tables
    differ in the grid of t:

    * ``even``: S + 1 even points from 1 to 0; every step does the same share of the work.
    * ``terminal``: S even points from 1 to 0.001, then sigma 0; the last step is almost none.
    * ``double_shift``: what diffusers' FlowMatchEulerDiscreteScheduler yields unless it is given sigmas. It shifts the
      end of its grid as well and thus bends the tail twice; the last two steps differ widely from ``terminal``. For
      comparison with published runs, Flow-GRPO's among them.

    Args:
        num_steps: S, number of denoising steps, at least 1.
        shift: resolution-dependent shift, > 0; 1 shifts nothing, SD3.5 uses 3.
        table: one of :data:`~verl_uae.flow.config.TABLES`.

    Returns:
        sigma, shape (S + 1,), fp32, strictly decreasing from 1 to 0.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [round(sigma, 3) for sigma in sigma_schedule(4, shift=3.0).tolist()]
        [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    if table not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}")
    # fp64 on the way: the table is compared bit for bit between sampler and trainer.
    if table == "even":
        return _shifted(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64), shift).float()
    last = torch.tensor(LAST_TIME, dtype=torch.float64)
    end = last if table == "terminal" else _shifted(last, shift)
    t = torch.linspace(1.0, end.item(), num_steps, dtype=torch.float64)
    return torch.cat([_shifted(t, shift), t.new_zeros(1)]).float()


def _shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1.0 + (shift - 1.0) * t)
