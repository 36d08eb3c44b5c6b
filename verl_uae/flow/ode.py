# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Deterministic sampling of the probability-flow ODE, and the gradient through it, one step at a time.

The gradient is that of backpropagation through the unrolled Euler sampler, exactly: with x_{i+1} = x_i + d_i v(x_i, c)
and g_i = dL/dx_i, step i adds d_i (dv/dtheta)^T g_{i+1} to the weights and d_i (dv/dc)^T g_{i+1} to the condition, and
g_i = g_{i+1} + d_i (dv/dx)^T g_{i+1}. The path x_0 .. x_S is kept, and with it the activations of the last so many
steps; those of the others live from a second forward pass to their own backward pass, which is gradient checkpointing
per step. Every step is a graph of its own and has a backward pass of its own, whether it was kept or not: in one graph
a sharded module would have to hold whole gradients of all weights until the last of the steps.

Shape legend: B samples, C H W latent channels, height and width, S denoising steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Path:
    """The way of a sample, and what waits for the way back."""

    states: list[Tensor]
    """x_0 .. x_S of shape (B, C, H, W), fp32, without a graph."""
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of the last steps x, a leaf, and its velocity with the activations of the step; the way back takes them out."""


@torch.no_grad()
def euler_path(velocity: Velocity, noise_BCHW: Tensor, sigmas: Tensor, *, keep: int = 0) -> Path:
    """All S + 1 states of :func:`~verl_uae.flow.ode.euler`; the last is the sample.

    Args:
        velocity: the model.
        noise_BCHW: x at ``sigmas[0]``.
        sigmas: noise levels, shape (S + 1,).
        keep: of how many of the last steps activations are kept, in [0, S].

    Raises:
        ValueError: ``keep`` is out of range.
    """
    steps = list(itertools.pairwise(sigmas.to(torch.float32).tolist()))
    if not 0 <= keep <= len(steps):
        raise ValueError(f"keep must lie in [0, {len(steps)}], got {keep}")
    path = Path([noise_BCHW.to(torch.float32)])
    for index, (sigma, sigma_next) in enumerate(steps):
        x_BCHW = path.states[-1]
        if index < len(steps) - keep:
            velocity_BCHW = _at(velocity, x_BCHW, sigma)
        else:
            path.kept.append(_with_graph(velocity, x_BCHW, sigma))
            velocity_BCHW = path.kept[-1][1].detach()
        path.states.append(x_BCHW + (sigma_next - sigma) * velocity_BCHW)
    return path


def euler_adjoint(
    velocity: Velocity,
    path: Path,
    sigmas: Tensor,
    gradient_BCHW: Tensor,
    *,
    steps: int | None = None,
    on_backward: Callable[[bool], None] | None = None,
) -> Tensor:
    """Backpropagate through the last steps; gradients accumulate in whatever leaves the velocity reaches.

    Args:
        velocity: the same model; it must be deterministic.
        path: of :func:`euler_path`; steps that it kept can be gone back through once.
        sigmas: the table it was sampled with, shape (S + 1,).
        gradient_BCHW: dL / dx_S.
        steps: how many steps to go back, from those kept, at least 1, to S; None is all of them.
        on_backward: told before every backward pass whether kept steps wait behind it.

    Returns:
        dL / dx at the first step gone through, shape (B, C, H, W), fp32.

    Raises:
        ValueError: ``steps`` is out of range, or the path is not of this table.
    """
    table = sigmas.to(torch.float32).tolist()
    count = len(table) - 1
    if len(path.states) != len(table):
        raise ValueError(f"a table of {count} steps has {len(table)} states, the path {len(path.states)}")
    steps = count if steps is None else steps
    least = max(1, len(path.kept))
    if not least <= steps <= count:
        raise ValueError(f"steps must lie in [{least}, {count}], got {steps}")
    gradient_BCHW = gradient_BCHW.to(torch.float32)
    for index in reversed(range(count - steps, count)):
        if path.kept:
            x_BCHW, velocity_BCHW = path.kept.pop()
        else:
            x_BCHW, velocity_BCHW = _with_graph(velocity, path.states[index], table[index])
        if on_backward is not None:
            on_backward(bool(path.kept))
        step = table[index + 1] - table[index]
        torch.autograd.backward(velocity_BCHW, step * gradient_BCHW)
        assert x_BCHW.grad is not None
        gradient_BCHW = gradient_BCHW + x_BCHW.grad
    return gradient_BCHW


def _with_graph(velocity: Velocity, x_BCHW: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """x as a leaf, and its velocity."""
    leaf_BCHW = x_BCHW.detach().requires_grad_()
    with torch.enable_grad():
        return leaf_BCHW, _at(velocity, leaf_BCHW, sigma)


def _at(velocity: Velocity, x_BCHW: Tensor, sigma: float) -> Tensor:
    sigma_B = torch.full((x_BCHW.shape[0],), sigma, dtype=torch.float32, device=x_BCHW.device)
    return velocity(x_BCHW, sigma_B).to(torch.float32)
