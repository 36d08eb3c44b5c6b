# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""DGPO: one preference of a whole group over the reference, from flow-matching losses.

Shape legend: B samples, C H W latent channels, height and width; D = C * H * W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from verl_uae.flow.matching import matching_error
from verl_uae.flow.objective.clip import check_clip
from verl_uae.flow.objective.registry import check_choice, check_number, register_objective
from verl_uae.flow.objective.types import ObjectiveOutput

REFERENCES = ("old", "base")


def check_dgpo(params: Mapping[str, Any]) -> None:
    """Refuse a beta that is not positive, clip widths out of range and an unknown reference.

    Raises:
        ConfigError: with the parameter's key.
    """
    check_number(params, "beta")
    check_clip(params)
    check_choice(params, "reference", REFERENCES)


def unneeded(params: Mapping[str, Any]) -> Sequence[str]:
    """The policy before RL is asked only where it is the reference."""
    return () if params["reference"] == "base" else ("reference_velocity_BCHW",)


def preference(
    velocity_BCHW: Tensor,
    old_velocity_BCHW: Tensor,
    reference_velocity_BCHW: Tensor | None,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    advantage_B: Tensor,
    reference: str,
) -> Tensor:
    """A (L - L_ref), shape (B,); below 0 where the policy has moved as the advantage says."""
    against_BCHW = old_velocity_BCHW if reference == "old" else reference_velocity_BCHW
    assert against_BCHW is not None
    loss_B = matching_error(velocity_BCHW, x0_BCHW, noise_BCHW)
    return advantage_B * (loss_B - matching_error(against_BCHW, x0_BCHW, noise_BCHW))


@register_objective("dgpo", check=check_dgpo, group=preference, unneeded=unneeded)
def dgpo(
    velocity_BCHW: Tensor,
    old_velocity_BCHW: Tensor,
    reference_velocity_BCHW: Tensor | None,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    advantage_B: Tensor,
    group_mean_B: Tensor,
    *,
    beta: float = 2000.0,
    clip_low: float = 1e-3,
    clip_high: float = 1e-3,
    reference: str = "old",
) -> ObjectiveOutput:
    """w A L with w = sigmoid(beta mean_group(A (L - L_ref))) (DGPO, Luo et al. 2025, arXiv 2510.08425).

    L = mean_D((v - (eps - x_0))^2), and w is a constant of the group. Over a group the gradient is that of
    -log sigmoid(-beta mean(A (L - L_ref))) / beta: the advantages of a group sum to 0, which cancels the partition
    function. Its members share noise and level (``uae.u4g.objective.share=noise``), so that their losses compare. A
    group that prefers its good samples enough already has w near 0 and rests.

    As in the authors' code (``Luo-Yihong/DGPO``), and not in the paper's first version, a sample whose
    exp(L_old - L) has left its room in the advantage's direction has no gradient. Its settings without guidance are the
    defaults: the old policy as a moving reference with beta 2000 and room 1e-3. With the frozen policy before RL
    (``reference=base``) they are beta 10 to 100, and the authors advise guidance on it
    (``uae.u4g.reference_kl.guidance=4.5``).

    Args:
        velocity_BCHW: of the current policy, any floating dtype; cast to that of the latents.
        old_velocity_BCHW: of the old policy.
        reference_velocity_BCHW: of the policy before RL; None with ``reference`` old.
        x0_BCHW: finished latents, fp32 (fp64 is accepted for checks).
        noise_BCHW: eps, likewise.
        advantage_B: shape (B,).
        group_mean_B: mean of :func:`preference` over the group.
        beta: sharpness of the preference, > 0.
        clip_low: room of exp(L_old - L) below 1 where A < 0, in (0, 1].
        clip_high: room above 1 where A > 0, > 0.
        reference: whom the policy is preferred to: old or base.

    Returns:
        Loss per sample and ``group_weight`` (w), ``matching_loss`` (L), ``likelihood_ratio`` (exp(L_old - L)),
        ``likelihood_clipped`` (1 where the gradient is removed).

    Raises:
        TypeError: latents in half precision.
    """
    loss_B = matching_error(velocity_BCHW, x0_BCHW, noise_BCHW)
    with torch.no_grad():
        ratio_B = (matching_error(old_velocity_BCHW, x0_BCHW, noise_BCHW) - loss_B).exp()
        too_high_B = (advantage_B > 0) & (ratio_B > 1.0 + clip_high)
        clipped_B = too_high_B | ((advantage_B < 0) & (ratio_B < 1.0 - clip_low))
        weight_B = torch.sigmoid(beta * group_mean_B)
    metrics = {
        "group_weight": weight_B,
        "matching_loss": loss_B.detach(),
        "likelihood_ratio": ratio_B,
        "likelihood_clipped": clipped_B.to(loss_B.dtype),
    }
    return ObjectiveOutput(weight_B * advantage_B * torch.where(clipped_B, loss_B.detach(), loss_B), metrics)
