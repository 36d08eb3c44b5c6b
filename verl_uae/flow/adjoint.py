# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient of a loss on sampled pictures with respect to the model that sampled them, one step at a time.

The gradient is that of backpropagation through the unrolled Euler sampler, exactly: with x_{i+1} = x_i + d_i v(x_i, c)
and g_i = dL/dx_i, step i adds d_i (dv/dtheta)^T g_{i+1} to the weights and d_i (dv/dc)^T g_{i+1} to the condition, and
g_i = g_{i+1} + d_i (dv/dx)^T g_{i+1}. Only the path x_0 .. x_S is kept; each step's activations live from its forward
pass, which is repeated here, to its own backward pass. That is gradient checkpointing per step, in the pattern of one
forward pass and one backward pass that sharded modules are made for.

Shape legend: B samples, C H W latent channels, height and width, S denoising steps.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from verl_uae.flow.ode import Velocity


@torch.no_grad()
def euler_path(velocity: Velocity, noise_BCHW: Tensor, sigmas: Tensor) -> list[Tensor]:
    """All S + 1 states of :func:`~verl_uae.flow.ode.euler`, fp32; the last is the sample."""
    path = [noise_BCHW.to(torch.float32)]
    for sigma, sigma_next in itertools.pairwise(sigmas.to(torch.float32).tolist()):
        path.append(path[-1] + (sigma_next - sigma) * _at(velocity, path[-1], sigma))
    return path


def euler_adjoint(
    velocity: Velocity, path: list[Tensor], sigmas: Tensor, gradient_BCHW: Tensor, *, steps: int | None = None
) -> Tensor:
    """Backpropagate through the last steps; gradients accumulate in whatever leaves the velocity reaches.

    Args:
        velocity: the same model; it must be deterministic.
        path: of :func:`euler_path`.
        sigmas: the table it was sampled with, shape (S + 1,).
        gradient_BCHW: dL / dx_S.
        steps: how many steps to go back, in [1, S]; None is all of them.

    Returns:
        dL / dx at the first step gone through, shape (B, C, H, W), fp32.

    Raises:
        ValueError: ``steps`` is out of range, or the path is not of this table.
    """
    table = sigmas.to(torch.float32).tolist()
    count = len(table) - 1
    if len(path) != len(table):
        raise ValueError(f"a table of {count} steps has {len(table)} states, the path {len(path)}")
    steps = count if steps is None else steps
    if not 1 <= steps <= count:
        raise ValueError(f"steps must lie in [1, {count}], got {steps}")
    gradient_BCHW = gradient_BCHW.to(torch.float32)
    for index in reversed(range(count - steps, count)):
        x_BCHW = path[index].detach().requires_grad_()
        with torch.enable_grad():
            velocity_BCHW = _at(velocity, x_BCHW, table[index])
        step = table[index + 1] - table[index]
        torch.autograd.backward(velocity_BCHW, step * gradient_BCHW)
        assert x_BCHW.grad is not None
        gradient_BCHW = gradient_BCHW + x_BCHW.grad
    return gradient_BCHW


def _at(velocity: Velocity, x_BCHW: Tensor, sigma: float) -> Tensor:
    sigma_B = torch.full((x_BCHW.shape[0],), sigma, dtype=torch.float32, device=x_BCHW.device)
    return velocity(x_BCHW, sigma_B).to(torch.float32)
