# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One reverse step of the flow as a Gaussian transition, x_next ~ N(c_x x + c_v v, std^2), and its log-probability.

Every sampler of the Flow-GRPO family is linear in the latent x and the velocity v = eps - x_0, so a step is three
numbers. They are Python floats: computed in fp64, they carry no dtype or device into a tensor. Sampling and scoring
are one function, :func:`step`, and differ only in which of noise and result is given.

Shape legend: B samples, C H W latent channels, height and width; D = C * H * W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_uae.flow.config import KERNELS, REDUCTIONS, Kernel, Reduction


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


@dataclass(frozen=True, slots=True)
class Coefficients:
    """One transition: mean ``x * latent + v * velocity`` and standard deviation ``std``."""

    x: float
    """Weight of the latent in the mean."""
    v: float
    """Weight of the velocity in the mean, negative: noise levels fall."""
    std: float
    """Standard deviation of the whole transition, never the diffusion coefficient; 0 for a deterministic step."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one transition led to."""

    x_next_BCHW: Tensor
    """Latent at the next noise level, fp32, detached."""
    mean_BCHW: Tensor
    """Mean of the transition, fp32, with gradient through the velocity."""
    log_prob_B: Tensor
    """Log-probability of ``x_next_BCHW``, fp32, reduced over C, H, W as asked, with gradient through the mean."""


def coefficients(
    kernel: Kernel, sigma: float, sigma_next: float, noise_level: float, sigma_first: float
) -> Coefficients:
    """The transition from ``sigma`` to ``sigma_next``; below, D = sigma - sigma_next.

    * ``ode``: Euler, mean x - v D, std 0. ``noise_level`` is ignored.
    * ``flow_sde`` (Flow-GRPO, arXiv 2505.05470, eq. 9): diffusion s = a sqrt(sigma / (1 - sigma)), mean
      x (1 - s^2 D / (2 sigma)) - v (1 + s^2 (1 - sigma) / (2 sigma)) D, std s sqrt(D), a = ``noise_level``. For
      sigma < 1 this is x (1 - a^2 D / (2 (1 - sigma))) - v (1 + a^2 / 2) D. s is infinite at sigma = 1; there the
      denominator takes ``sigma_first`` in place of sigma, as the authors' code does.
    * ``dance`` (DanceGRPO, arXiv 2505.07818): the same with constant s = ``noise_level``.
    * ``cps`` (Flow-CPS, arXiv 2509.05952): std = sigma_next sin(eta pi / 2), eta = ``noise_level``; mean
      (1 - sigma_next) (x - sigma v) + sqrt(sigma_next^2 - std^2) (x + (1 - sigma) v), that is, predicted data and
      predicted noise, where the kept and the fresh noise add in quadrature to sigma_next. It does not keep the
      marginals of the flow, however fine the steps.

    All of them are ``ode`` at ``noise_level`` 0.

    Args:
        kernel: one of :data:`~verl_uae.flow.config.KERNELS`.
        sigma: noise level of the step's start, in (0, 1].
        sigma_next: noise level of its end, in [0, sigma).
        noise_level: how stochastic, at least 0; at most 1 for ``cps``. Published: cps 0.7 to 0.9, flow_sde 0.7,
            dance 0.3.
        sigma_first: second entry of the noise-level table, in [0, 1). Used by ``flow_sde`` at sigma = 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check(kernel, sigma, sigma_next, noise_level, sigma_first)
    delta = sigma - sigma_next
    if kernel == "ode":
        return Coefficients(1.0, -delta, 0.0)
    if kernel == "cps":
        std = sigma_next * math.sin(noise_level * math.pi / 2.0)
        kept = sigma_next * math.cos(noise_level * math.pi / 2.0)
        return Coefficients(1.0 - sigma_next + kept, kept * (1.0 - sigma) - (1.0 - sigma_next) * sigma, std)
    diffusion = noise_level
    if kernel == "flow_sde":
        diffusion *= math.sqrt(sigma / (1.0 - (sigma_first if sigma == 1.0 else sigma)))
    pull = diffusion**2 / (2.0 * sigma)
    return Coefficients(1.0 - pull * delta, -(1.0 + pull * (1.0 - sigma)) * delta, diffusion * math.sqrt(delta))


def gain(c: Coefficients) -> float:
    """``|d mean / d velocity| / std``: how much one unit of velocity moves the mean, in standard deviations.

    The gradient of the mean-reduced log-probability is gain * mean(z * dv), the divergence of two policies
    (gain * rms(dv))^2 / 2. Infinite for a deterministic step.
    """
    return abs(c.v) / c.std if c.std > 0.0 else math.inf


def transition_mean(c: Coefficients, x_BCHW: Tensor, v_BCHW: Tensor) -> Tensor:
    """Mean of a transition, and all of a deterministic one.

    Args:
        c: the transition.
        x_BCHW: latent, shape (B, C, H, W), fp32.
        v_BCHW: velocity, same shape, any floating dtype; cast to fp32 before use.

    Returns:
        Shape (B, C, H, W), fp32, differentiable in ``v_BCHW``.

    Raises:
        TypeError: the latent is not fp32.
        ValueError: shapes differ, or the velocity is not floating point.
    """
    require_fp32(x_BCHW=x_BCHW)
    if v_BCHW.shape != x_BCHW.shape or not v_BCHW.is_floating_point():
        raise ValueError(f"velocity {v_BCHW.dtype} {tuple(v_BCHW.shape)} for a latent of shape {tuple(x_BCHW.shape)}")
    return c.x * x_BCHW + c.v * v_BCHW.to(torch.float32)


def step(
    c: Coefficients,
    x_BCHW: Tensor,
    v_BCHW: Tensor,
    *,
    noise_BCHW: Tensor | None = None,
    x_next_BCHW: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Step:
    """Take a stochastic step with given noise, or score one that was taken.

    The log-probability of a sampled step is computed from its result, so scoring the same numbers again gives the
    same bits. For that the result must be kept as it is: rounding ``x_next_BCHW`` after it was scored shifts its
    log-probability by more than a usual clip range.

    Args:
        c: the transition, with ``std`` > 0.
        x_BCHW: latent at the start of the step, shape (B, C, H, W), fp32.
        v_BCHW: velocity there, same shape, any floating dtype.
        noise_BCHW: standard normal noise to sample with, same shape, fp32; or
        x_next_BCHW: latent at the end of the step to score, same shape, fp32. Exactly one of the two.
        reduction: of the log-probability, see :func:`~verl_uae.flow.kernels.gaussian_log_prob`.

    Raises:
        TypeError: a latent or the noise is not fp32.
        ValueError: neither or both of noise and result, differing shapes, or a deterministic step, which has no
            log-probability (use :func:`transition_mean`).

    Example:
        A sampled step, scored again: the ratio of the two log-probabilities is 1 to the last bit.

        >>> x, velocity, noise = (torch.randn(2, 4, 8, 8) for _ in range(3))
        >>> transition = coefficients("flow_sde", 0.75, 0.5, noise_level=0.7, sigma_first=0.9)
        >>> taken = step(transition, x, velocity, noise_BCHW=noise)
        >>> again = step(transition, x, velocity, x_next_BCHW=taken.x_next_BCHW)
        >>> (again.log_prob_B - taken.log_prob_B).exp().tolist()
        [1.0, 1.0]
    """
    if (noise_BCHW is None) == (x_next_BCHW is None):
        raise ValueError("give exactly one of noise_BCHW, to sample, and x_next_BCHW, to score")
    if not c.std > 0.0:
        raise ValueError("a deterministic step has no log-probability")
    mean_BCHW = transition_mean(c, x_BCHW, v_BCHW)
    if x_next_BCHW is None:
        assert noise_BCHW is not None
        require_fp32(noise_BCHW=noise_BCHW)
        if noise_BCHW.shape != x_BCHW.shape:
            raise ValueError(f"noise of shape {tuple(noise_BCHW.shape)} for a latent {tuple(x_BCHW.shape)}")
        x_next_BCHW = mean_BCHW + c.std * noise_BCHW
    return Step(x_next_BCHW.detach(), mean_BCHW, gaussian_log_prob(x_next_BCHW, mean_BCHW, c.std, reduction))


def _check(kernel: str, sigma: float, sigma_next: float, noise_level: float, sigma_first: float) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if not 0.0 <= sigma_next < sigma <= 1.0:
        raise ValueError(f"noise levels must fall within [0, 1], got a step from {sigma} to {sigma_next}")
    if not 0.0 <= noise_level < math.inf or (kernel == "cps" and noise_level > 1.0):
        highest = "1" if kernel == "cps" else "any finite value"
        raise ValueError(f"noise_level of {kernel} must be from 0 to {highest}, got {noise_level}")
    if not 0.0 <= sigma_first < 1.0:
        raise ValueError(f"sigma_first, the second noise level of the table, must be in [0, 1), got {sigma_first}")
