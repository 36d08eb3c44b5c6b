# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Deterministic sampling of the probability-flow ODE, and the gradient through it, one step at a time.

The gradient is that of backpropagation through the unrolled Euler sampler, exactly: with x_{i+1} = x_i + d_i v(x_i, c)
and g_i = dL/dx_i, step i adds d_i (dv/dtheta)^T g_{i+1} to the weights and d_i (dv/dc)^T g_{i+1} to the condition, and
g_i = g_{i+1} + d_i (dv/dx)^T g_{i+1}. Only the path x_0 .. x_S is kept; each step's activations live from its forward
pass, which is repeated here, to its own backward pass. That is gradient checkpointing per step, in the pattern of one
forward pass and one backward pass that sharded modules are made for.

Shape legend: B samples, C H W latent channels, height and width, S denoising steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

#: Maps (x of shape (B, C, H, W), sigma of shape (B,)) to a velocity of x's shape, v = eps - x_0.
Velocity = Callable[[Tensor, Tensor], Tensor]

#: Told after every step its number and x, shape (B, C, H, W); returns the x to go on from and whether to go on.
StepHook = Callable[[int, Tensor], tuple[Tensor, bool]]


def euler(velocity: Velocity, noise_BCHW: Tensor, sigmas: Tensor, on_step: StepHook | None = None) -> Tensor:
    """Integrate dx/dsigma = v(x, sigma) from noise to data with Euler steps.

    The state stays in fp32 whatever the model computes in, since rounding it to bf16 after each step
    costs more accuracy than the bf16 model does.

    Args:
        velocity: the model.
        noise_BCHW: x at ``sigmas[0]``, shape (B, C, H, W).
        sigmas: noise levels, shape (S + 1,), from :func:`~verl_uae.flow.schedule.sigma_schedule`.
        on_step: may replace x after a step, or end the integration early.

    Returns:
        x at ``sigmas[-1]``, or where ``on_step`` ended it, shape (B, C, H, W), fp32.
    """
    x_BCHW = noise_BCHW.to(torch.float32)
    table = sigmas.to(torch.float32).tolist()
    for index, (sigma, sigma_next) in enumerate(itertools.pairwise(table)):
        sigma_B = torch.full((x_BCHW.shape[0],), sigma, dtype=torch.float32, device=x_BCHW.device)
        x_BCHW = x_BCHW + (sigma_next - sigma) * velocity(x_BCHW, sigma_B).to(torch.float32)
        if on_step is not None:
            x_BCHW, go_on = on_step(index, x_BCHW)
            if not go_on:
                break
    return x_BCHW


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
