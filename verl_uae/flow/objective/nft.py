# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""DiffusionNFT: policy improvement on freshly noised results, without stored steps or log-probabilities.

Shape legend: B samples, C H W latent channels, height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from verl_uae.flow.advantage import unit_reward
from verl_uae.flow.divergence import velocity_distance
from verl_uae.flow.matching import require_wide, self_normalised
from verl_uae.flow.objective.registry import check_number, register_objective
from verl_uae.flow.objective.types import ObjectiveOutput


def check_nft(params: Mapping[str, Any]) -> None:
    """Refuse beta outside (0, 1] and an advantage_max that is not positive.

    Raises:
        ConfigError: with the parameter's key.
    """
    check_number(params, "beta", at_most=1.0)
    check_number(params, "advantage_max")


@register_objective("nft", check=check_nft)
def nft(
    velocity_BCHW: Tensor,
    old_velocity_BCHW: Tensor,
    x0_BCHW: Tensor,
    x_sigma_BCHW: Tensor,
    sigma_B: Tensor,
    advantage_B: Tensor,
    *,
    beta: float = 1.0,
    advantage_max: float = 5.0,
) -> ObjectiveOutput:
    """Regress a good and an implied bad velocity on the same result, weighted by how good it was.

    r = 0.5 + 0.5 clip(A / advantage_max, -1, 1); v+ = (1 - beta) v_old + beta v; v- = (1 + beta) v_old - beta v;
    loss = (r L+ + (1 - r) L-) advantage_max / beta (DiffusionNFT, Zheng et al. 2025, arXiv 2509.16117).

    As in the published code, and not in the paper's equation, the errors e = x_sigma - sigma v - x_0 are those of the
    predicted x_0, each L = mean_D(e^2) is divided by its sample's own mean ``|e|`` (without gradient, at least 1e-5),
    and the loss is scaled by advantage_max / beta. That scale makes the gradient at v = v_old equal to
    ``-2 A sigma e / (D mean|e|)`` while ``|A| <= advantage_max``, whatever the two parameters are, so that a learning
    rate keeps its meaning.

    Args:
        velocity_BCHW: of the current policy, any floating dtype; cast to that of the latents.
        old_velocity_BCHW: of the old policy; it may be an average of past weights.
        x0_BCHW: finished latents, fp32 (fp64 is accepted for checks).
        x_sigma_BCHW: the same, noised by :func:`~verl_uae.flow.matching.forward_noise`.
        sigma_B: levels they were noised to.
        advantage_B: shape (B,).
        beta: step from the old policy, in (0, 1]; smaller keeps closer to it.
        advantage_max: advantage that counts as entirely good, > 0.

    Returns:
        Loss per sample and ``preference`` (r), ``positive_error`` and ``negative_error`` (mean ``|e|``),
        ``clipped_advantage`` (1 where the clip acts), ``old_distance`` (mean_D((v - v_old)^2)).

    Raises:
        TypeError: latents in half precision.
    """
    require_wide(x0_BCHW, x_sigma_BCHW)
    velocity_BCHW = velocity_BCHW.to(x_sigma_BCHW.dtype)
    old_BCHW = old_velocity_BCHW.detach().to(x_sigma_BCHW.dtype)
    preference_B = unit_reward(advantage_B, advantage_max)
    target = (x0_BCHW, x_sigma_BCHW, sigma_B)
    good_B, good_error_B = _normalised_error((1.0 - beta) * old_BCHW + beta * velocity_BCHW, *target)
    bad_B, bad_error_B = _normalised_error((1.0 + beta) * old_BCHW - beta * velocity_BCHW, *target)
    loss_B = (preference_B * good_B + (1.0 - preference_B) * bad_B) * (advantage_max / beta)
    metrics = {
        "preference": preference_B.detach(),
        "positive_error": good_error_B,
        "negative_error": bad_error_B,
        "clipped_advantage": (advantage_B.abs() > advantage_max).to(loss_B.dtype),
        "old_distance": velocity_distance(velocity_BCHW.detach(), old_BCHW),
    }
    return ObjectiveOutput(loss_B, metrics)


def _normalised_error(
    velocity_BCHW: Tensor, x0_BCHW: Tensor, x_sigma_BCHW: Tensor, sigma_B: Tensor
) -> tuple[Tensor, Tensor]:
    """mean_D(e^2) / mean_D|e| of the predicted x_0, and mean_D|e| without gradient; both (B,)."""
    return self_normalised(x_sigma_BCHW - sigma_B[:, None, None, None] * velocity_BCHW - x0_BCHW)
