# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""CRD: the policy's implicit reward is matched to the reward, both centred in their group.

Shape legend: B samples, C H W latent channels, height and width; D = C * H * W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from verl_uae.flow.advantage import unit_reward
from verl_uae.flow.divergence import velocity_distance
from verl_uae.flow.matching import self_normalised, velocity_error
from verl_uae.flow.objective.registry import check_number, register_objective
from verl_uae.flow.objective.types import ObjectiveOutput


def check_crd(params: Mapping[str, Any]) -> None:
    """Refuse a beta or an advantage_max that is not positive.

    Raises:
        ConfigError: with the parameter's key.
    """
    check_number(params, "beta")
    check_number(params, "advantage_max")


def implicit_reward(
    velocity_BCHW: Tensor, old_velocity_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """-(L - L_old), shape (B,), with gradient through the velocity; and mean_D|e| of the policy.

    L = mean_D(e^2) / mean_D|e| of e = v - (eps - x_0), the divisor without gradient.
    """
    loss_B, size_B = self_normalised(velocity_error(velocity_BCHW, x0_BCHW, noise_BCHW))
    old_loss_B, _ = self_normalised(velocity_error(old_velocity_BCHW.detach(), x0_BCHW, noise_BCHW))
    return old_loss_B - loss_B, size_B


def gap(
    velocity_BCHW: Tensor,
    old_velocity_BCHW: Tensor,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    advantage_B: Tensor,
    beta: float,
    advantage_max: float,
) -> Tensor:
    """beta times the implicit reward minus the reward in [0, 1], shape (B,)."""
    implicit_B, _ = implicit_reward(velocity_BCHW, old_velocity_BCHW, x0_BCHW, noise_BCHW)
    return beta * implicit_B - unit_reward(advantage_B, advantage_max)


@register_objective("crd", check=check_crd, group=gap)
def crd(
    velocity_BCHW: Tensor,
    old_velocity_BCHW: Tensor,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    advantage_B: Tensor,
    group_mean_B: Tensor,
    *,
    beta: float = 1.0,
    advantage_max: float = 5.0,
) -> ObjectiveOutput:
    """(beta (R - mean R) - (rho - mean rho))^2 advantage_max / beta, means over the group (CRD, arXiv 2603.14128).

    R is :func:`implicit_reward` and rho = 0.5 + 0.5 clip(A / advantage_max, -1, 1). Centring cancels the normalising
    constant of the policy that maximises reward under a KL penalty. The means carry no gradient. At v = v_old, R is 0
    and the gradient is A dL/dv for groups without a cut advantage, whatever the two parameters are.

    The paper's code could not be read; form, scale and defaults are those of its port in Flow-Factory: squared error,
    uniform weights in the group, the implicit reward of each policy divided by its own error (its ``adaptive_logp``),
    beta 1, advantages cut at 5. There the policy that samples, the old one and the reference are three; here the
    current weights sample (``uae.u4g.objective.draw_from=current``), the old policy follows, and the reference is that
    of ``uae.u4g.reference_kl``, whose ``guidance`` and ``floor`` are CRD's guided teacher and reward-adaptive weight.

    Args:
        velocity_BCHW: of the current policy, any floating dtype; cast to that of the latents.
        old_velocity_BCHW: of the old policy, which the implicit reward is relative to.
        x0_BCHW: finished latents, fp32 (fp64 is accepted for checks).
        noise_BCHW: eps, likewise.
        advantage_B: shape (B,).
        group_mean_B: mean of :func:`gap` over the group.
        beta: scale of the implicit reward, > 0: strength of the KL penalty to the old policy.
        advantage_max: advantage that counts as the best reward, > 0.

    Returns:
        Loss per sample and ``implicit_reward`` (R), ``reward_gap`` (the centred difference), ``positive_error``
        (mean ``|e|``), ``clipped_advantage`` (1 where the clip acts), ``old_distance`` (mean_D((v - v_old)^2)).

    Raises:
        TypeError: latents in half precision.
    """
    implicit_B, size_B = implicit_reward(velocity_BCHW, old_velocity_BCHW, x0_BCHW, noise_BCHW)
    gap_B = beta * implicit_B - unit_reward(advantage_B, advantage_max) - group_mean_B
    metrics = {
        "implicit_reward": implicit_B.detach(),
        "reward_gap": gap_B.detach(),
        "positive_error": size_B,
        "clipped_advantage": (advantage_B.abs() > advantage_max).to(gap_B.dtype),
        "old_distance": velocity_distance(velocity_BCHW.detach(), old_velocity_BCHW),
    }
    return ObjectiveOutput(gap_B.square() * (advantage_max / beta), metrics)
