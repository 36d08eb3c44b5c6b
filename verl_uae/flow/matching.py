# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised flow matching: which noise levels are trained, and the loss at one of them.

Esser et al. 2024 ("SD3", arXiv 2403.03206), sections 2 and 3.1. Noise levels are continuous: sigma of
x_sigma = (1 - sigma) x_0 + sigma * eps, 1 being pure noise, as their t.

Shape legend: B samples, N or K drawn levels, C H W latent channels, height and width; D = C * H * W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_uae.flow.config import DensityConfig
from verl_uae.flow.schedule import LAST_TIME
from verl_uae.settings import key

#: Smallest divisor of an error; the published floor.
ERROR_FLOOR = 1e-5


@dataclass
class NoiseDensity(DensityConfig):
    """How often each noise level is trained, and how much it counts.

    ``logit_normal`` (SD3, eq. 19), ``mode`` (eq. 20) and ``uniform`` draw levels and weigh all of them alike;
    ``cosmap`` (eq. 21) and ``sigma_sqrt`` draw uniformly and weigh. All five are those of diffusers' SD3 training
    scripts, with SD3's orientation: a positive ``logit_mean`` trains more noise. diffusers' scripts turn a level around
    before they use it, which is the same for the default mean of 0 and for ``mode``.
    """

    shift: float = key(1.0, above=0)
    """sigma = shift * t / (1 + (shift - 1) * t) (eq. 23), above 0; SD3.5 at 1024 pixels: 3."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` noise levels in [0.001, 1], shape (N,), fp32, on the generator's device."""
        device = generator.device
        if self.name == "logit_normal":
            z_N = torch.randn(count, generator=generator, device=device, dtype=torch.float64)
            t_N = torch.sigmoid(self.logit_mean + self.logit_std * z_N)
        else:
            t_N = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        if self.name == "mode":
            t_N = 1.0 - t_N - self.mode_scale * (torch.cos(0.5 * math.pi * t_N).square() - 1.0 + t_N)
        sigma_N = self.shift * t_N / (1.0 + (self.shift - 1.0) * t_N)
        # Below it the target is almost the negative picture at infinite weight; no sampler asks there either.
        return sigma_N.clamp(LAST_TIME, 1.0).float()

    def weight(self, sigma_B: Tensor) -> Tensor:
        """Weight of the squared error, shape (B,), at least 0."""
        if self.name == "sigma_sqrt":
            return sigma_B.square().reciprocal()
        if self.name == "cosmap":
            return 2.0 / (math.pi * (1.0 - 2.0 * sigma_B + 2.0 * sigma_B.square()))
        return torch.ones_like(sigma_B)


def draw_sigmas(sigmas: Sequence[float], draws: int, generator: torch.Generator) -> Tensor:
    """Noise levels to train one sample at: distinct entries of the sampling table, each as likely as the next.

    The model is trained where the sampler asks it, as in the published code. Both ends are left out: at sigma 0 there
    is nothing to predict, and at sigma 1 the state holds nothing of the sample, so its loss can only move an average
    (the published code keeps sigma 1 and drops the last level instead).

    Args:
        sigmas: the table, decreasing from 1 to 0.
        draws: K, how many.
        generator: a named one, on the CPU.

    Returns:
        Shape (K,), fp32, on the CPU.

    Raises:
        ValueError: more draws than the table has entries strictly between 0 and 1, or fewer than one.
    """
    interior = torch.tensor([sigma for sigma in sigmas if 0.0 < sigma < 1.0], dtype=torch.float32)
    if not 1 <= draws <= len(interior):
        raise ValueError(f"cannot draw {draws} of the {len(interior)} noise levels between 0 and 1 in the table")
    return interior[torch.randperm(len(interior), generator=generator)[:draws]]


def forward_noise(x0_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) x_0 + sigma eps, each sample at its own level.

    Args:
        x0_BCHW: finished latents, shape (B, C, H, W).
        noise_BCHW: standard normal, same shape.
        sigma_B: noise levels in [0, 1], shape (B,).

    Returns:
        x_sigma, shape (B, C, H, W).

    Raises:
        ValueError: shapes do not fit.
    """
    if noise_BCHW.shape != x0_BCHW.shape or sigma_B.shape != x0_BCHW.shape[:1]:
        shapes = [tuple(each.shape) for each in (x0_BCHW, noise_BCHW, sigma_B)]
        raise ValueError(f"x0 and noise must have one shape and sigma one number per sample, got {shapes}")
    sigma_B111 = sigma_B[:, None, None, None]
    return (1.0 - sigma_B111) * x0_BCHW + sigma_B111 * noise_BCHW


def flow_matching_loss(velocity_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """weight * mean over latent dimensions of (v - (eps - x_0))^2, shape (B,), fp32 (SD3, eq. 14 in velocity form).

    Args:
        velocity_BCHW: of the model at x_sigma, any floating dtype.
        x0_BCHW: latents, fp32.
        noise_BCHW: eps, fp32.
        weight_B: of :meth:`NoiseDensity.weight`.

    Raises:
        TypeError: latents or noise in half precision.
    """
    return weight_B * matching_error(velocity_BCHW, x0_BCHW, noise_BCHW)


def matching_error(velocity_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """mean_D((v - (eps - x_0))^2), shape (B,); arguments and errors as of :func:`velocity_error`."""
    return velocity_error(velocity_BCHW, x0_BCHW, noise_BCHW).square().flatten(1).mean(1)


def velocity_error(velocity_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """v - (eps - x_0), the residual of flow matching, shape (B, C, H, W), of the latents' dtype.

    Args:
        velocity_BCHW: of the model at x_sigma, any floating dtype.
        x0_BCHW: latents, fp32 (fp64 is accepted for checks).
        noise_BCHW: eps, likewise.

    Raises:
        TypeError: latents or noise in half precision.
    """
    require_wide(x0_BCHW, noise_BCHW)
    return velocity_BCHW.to(x0_BCHW.dtype) - (noise_BCHW - x0_BCHW)


def self_normalised(error_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """mean_D(e^2) / mean_D|e|, the divisor without gradient and at least 1e-5, and mean_D|e|; both of shape (B,)."""
    error_BD = error_BCHW.flatten(1)
    size_B = error_BD.detach().abs().mean(1)
    return error_BD.square().mean(1) / size_B.clamp_min(ERROR_FLOOR), size_B


def require_wide(*latents: Tensor) -> None:
    """Refuse latents in half precision.

    Raises:
        TypeError: one is neither fp32 nor fp64.
    """
    for latent in latents:
        if latent.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"latents must be torch.float32, got {latent.dtype}")
