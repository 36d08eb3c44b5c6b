# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A flow whose velocity is known: every latent dimension of the data is N(MEAN, VARIANCE), independently.

With x = (1 - sigma) x_0 + sigma eps, E[eps - x_0 | x] is affine in x, so mean and variance go through any kernel of
this package in closed form.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from verl_uae.flow.config import Kernel
from verl_uae.flow.kernels import Coefficients, coefficients

MEAN, VARIANCE = 0.5, 0.25

#: The stochastic kernels with their published noise levels.
PUBLISHED: tuple[tuple[Kernel, float], ...] = (("flow_sde", 0.7), ("cps", 0.8), ("dance", 0.3))


def marginal(sigma: float) -> tuple[float, float]:
    """Mean and variance of x at a noise level."""
    return (1.0 - sigma) * MEAN, (1.0 - sigma) ** 2 * VARIANCE + sigma**2


def velocity_line(sigma: float) -> tuple[float, float]:
    """Slope and offset of the exact velocity in x."""
    mean, variance = marginal(sigma)
    slope = (sigma - (1.0 - sigma) * VARIANCE) / variance
    return slope, -MEAN - slope * mean


def exact_velocity(x_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    slope, offset = velocity_line(float(sigma_B[0]))
    return slope * x_BCHW + offset


def table_coefficients(table: Sequence[float], kernel: Kernel, noise_level: float) -> list[Coefficients]:
    return [coefficients(kernel, a, b, noise_level, table[1]) for a, b in itertools.pairwise(table)]


def propagate(
    table: Sequence[float], steps: Sequence[Coefficients], mean: float, variance: float
) -> tuple[float, float]:
    """Exact mean and variance at the end of the table."""
    for sigma, c in zip(table, steps, strict=False):
        slope, offset = velocity_line(sigma)
        factor = c.x + c.v * slope
        mean, variance = factor * mean + c.v * offset, factor**2 * variance + c.std**2
    return mean, variance


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
