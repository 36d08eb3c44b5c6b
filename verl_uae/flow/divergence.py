# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""How far two policies are apart at one step.

Shape legend: B samples, C H W latent channels, height and width; D = C * H * W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_uae.flow.config import PENALTY_FORMS, PenaltyForm


def transition_kl(mean_a_BCHW: Tensor, mean_b_BCHW: Tensor, std: float) -> Tensor:
    """Kullback-Leibler divergence of two Gaussians of equal std, mean over latent dimensions.

    k = mean((a - b)^2) / (2 std^2) in nats per dimension, free of sampling noise and the same in both directions. The
    mean-reduced log-ratio of samples of b has mean -k and variance 2 k / D.

    Args:
        mean_a_BCHW: mean of one policy, shape (B, C, H, W), fp32 (fp64 is accepted for checks).
        mean_b_BCHW: mean of the other.
        std: standard deviation of the whole transition, > 0, never the diffusion coefficient.

    Returns:
        Shape (B,), at least 0, differentiable in both means.

    Raises:
        TypeError: half precision.
        ValueError: shapes differ or ``std`` is not positive.
    """
    if mean_a_BCHW.shape != mean_b_BCHW.shape:
        raise ValueError(f"means of shapes {tuple(mean_a_BCHW.shape)} and {tuple(mean_b_BCHW.shape)}")
    for mean in (mean_a_BCHW, mean_b_BCHW):
        if mean.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"means must be torch.float32, got {mean.dtype}")
    if not std > 0.0:
        raise ValueError(f"a divergence needs a positive std, got {std}")
    return (mean_a_BCHW - mean_b_BCHW).square().flatten(1).mean(1) / (2.0 * std**2)


def reference_penalty(
    form: PenaltyForm,
    mean_BCHW: Tensor,
    ref_mean_BCHW: Tensor,
    std: float,
    step_size: float,
    velocity_BCHW: Tensor,
    ref_velocity_BCHW: Tensor,
    sigma: float,
) -> Tensor:
    """Distance of the policy from a reference at one step, mean over latent dimensions.

    * ``exact``: :func:`transition_kl`. For ``flow_sde`` below sigma = 1 this is
      (1 + a^2 / 2)^2 / (2 a^2) * step_size * (1 - sigma) / sigma * mean(dv^2).
    * ``flow_grpo``: ``exact`` times the step size, the form in Flow-GRPO's code (arXiv 2505.05470), for its published
      weights: it divides by the squared diffusion coefficient instead of the squared std.
    * ``velocity``: mean((v - v_ref)^2), for objectives without transitions (DiffusionNFT, arXiv 2509.16117).
    * ``x0``: sigma^2 times ``velocity``, the same of the predicted data x - sigma v.

    Args:
        form: one of :data:`~verl_uae.flow.config.PENALTY_FORMS`.
        mean_BCHW: mean of the policy's transition, shape (B, C, H, W), fp32.
        ref_mean_BCHW: of the reference; detached.
        std: of the transition, > 0; ``velocity`` and ``x0`` do not use it, nor the means.
        step_size: sigma - sigma_next, > 0.
        velocity_BCHW: of the policy, same shape, any floating dtype; taken to fp32.
        ref_velocity_BCHW: of the reference; detached.
        sigma: noise level at the start of the step, in (0, 1].

    Returns:
        Shape (B,), at least 0, differentiable in the policy alone.

    Raises:
        TypeError: a mean in half precision.
        ValueError: an unknown form, or what :func:`transition_kl` raises.
    """
    if form not in PENALTY_FORMS:
        raise ValueError(f"reference_kl.form must be one of {', '.join(PENALTY_FORMS)}, got {form!r}")
    if form in ("exact", "flow_grpo"):
        exact_B = transition_kl(mean_BCHW, ref_mean_BCHW.detach(), std)
        return exact_B * step_size if form == "flow_grpo" else exact_B
    if velocity_BCHW.shape != ref_velocity_BCHW.shape:
        raise ValueError(f"velocities {tuple(velocity_BCHW.shape)} and {tuple(ref_velocity_BCHW.shape)}")
    squared_B = velocity_distance(velocity_BCHW, ref_velocity_BCHW)
    return squared_B * sigma**2 if form == "x0" else squared_B


def velocity_distance(velocity_BCHW: Tensor, ref_velocity_BCHW: Tensor) -> Tensor:
    """mean_D((v - v_ref)^2), shape (B,), in fp32 or wider, differentiable in the policy's velocity alone."""
    return (_wide(velocity_BCHW) - _wide(ref_velocity_BCHW.detach())).square().flatten(1).mean(1)


def norm_excess(velocity_BCHW: Tensor, ref_velocity_BCHW: Tensor) -> Tensor:
    """max(0, rms(v) - rms(v_ref)), root mean squares over the latent dimensions, in units of the velocity.

    The hinge of NormGuard (arXiv 2606.27771): it acts only where the velocity has become longer than the reference's.
    Length per dimension in place of the length itself, so that a weight means the same at every size of picture, and
    the hinge not squared are our reading of its abstract, the one text of it at hand.

    Args:
        velocity_BCHW: of the policy, shape (B, C, H, W), any floating dtype; taken to fp32.
        ref_velocity_BCHW: of the reference; detached.

    Returns:
        Shape (B,), at least 0, differentiable in the policy alone; where it is 0 the gradient is 0.
    """
    root = velocity_BCHW[0].numel() ** 0.5
    length_B = torch.linalg.vector_norm(_wide(velocity_BCHW).flatten(1), dim=1)
    ref_length_B = torch.linalg.vector_norm(_wide(ref_velocity_BCHW.detach()).flatten(1), dim=1)
    return torch.relu((length_B - ref_length_B) / root)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
