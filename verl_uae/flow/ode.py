# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Deterministic sampling of the probability-flow ODE.

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


def guided(both: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance, v = v_u + scale * (v_c - v_u) (Ho & Salimans 2022, eq. 6 in velocity form).

    Both branches are one call of 2B rows, and a gradient goes through both.

    Args:
        both: velocities of 2B latents, the first B with their condition, the others without; of B where ``scale`` is 1.
        scale: 1 is off.
    """
    if scale == 1.0:
        return both

    def velocity(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        conditional, unconditional = both(x_BCHW.repeat(2, 1, 1, 1), sigma_B.repeat(2)).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return velocity
