# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""AWM: the flow-matching loss on fresh noise as a log-likelihood, weighted by the advantage.

Shape legend: B samples, C H W latent channels, height and width; D = C * H * W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from verl_uae.flow.divergence import velocity_distance
from verl_uae.flow.matching import matching_error
from verl_uae.flow.objective.clip import check_clip, clipped_loss
from verl_uae.flow.objective.registry import check_choice, check_number, register_objective
from verl_uae.flow.objective.types import ObjectiveOutput

WEIGHTINGS = ("uniform", "sigma", "sigma_squared", "huber", "ghuber")
#: Smallest loss that the two Huber forms see, whose slope is infinite at 0; the published floor.
LOSS_FLOOR = 1e-10


def check_awm(params: Mapping[str, Any]) -> None:
    """Refuse clip widths, a power or an advantage_max out of range, a negative old_kl and an unknown weighting.

    Raises:
        ConfigError: with the parameter's key.
    """
    check_clip(params)
    check_choice(params, "weighting", WEIGHTINGS)
    check_number(params, "power", at_most=1.0)
    check_number(params, "advantage_max")
    check_number(params, "old_kl", at_least=0.0)


@register_objective("awm", check=check_awm)
def awm(
    velocity_BCHW: Tensor,
    old_velocity_BCHW: Tensor,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    sigma_B: Tensor,
    advantage_B: Tensor,
    *,
    weighting: str = "ghuber",
    power: float = 0.25,
    clip_low: float = 1.0,
    clip_high: float = 1.0,
    advantage_max: float = 5.0,
    old_kl: float = 1.0,
) -> ObjectiveOutput:
    """Clipped ratio of the flow-matching loss, and a pull to the old policy (AWM, Xue et al. 2025, arXiv 2509.25050).

    With m = mean_D((v - (eps - x_0))^2) the log-likelihood is l = -w(m, sigma), see :func:`surrogate`; both policies
    see the same noise and level. r = exp(l - l_old), A' = clip(A / advantage_max, -1, 1), and the loss is
    max(-A' r, -A' clip(r, 1 - clip_low, 1 + clip_high)) + old_kl mean_D((v - v_old)^2).

    The defaults are those of the authors' code (``scxue/advantage_weighted_matching``, its three tasks): ``ghuber``
    with power 0.25, A cut at 5 and divided by it, clip 1, which never acts near the old policy, and 1 times the
    distance to an average of the policy. That average, which also draws the samples in the code's off-policy setting,
    is the old policy here. The paper's own weight w = m is ``uniform``. At v = v_old, r = 1 and the gradient is
    -A' dl/dv.

    Args:
        velocity_BCHW: of the current policy, any floating dtype; cast to that of the latents.
        old_velocity_BCHW: of the old policy.
        x0_BCHW: finished latents, fp32 (fp64 is accepted for checks).
        noise_BCHW: eps, likewise.
        sigma_B: levels they were noised to.
        advantage_B: shape (B,).
        weighting: of the loss: uniform, sigma, sigma_squared, huber or ghuber.
        power: of ghuber, in (0, 1].
        clip_low: room of the ratio below 1, in (0, 1].
        clip_high: room above 1, > 0.
        advantage_max: advantage that counts as 1, > 0.
        old_kl: weight of the squared distance from the old velocity, at least 0.

    Returns:
        Loss per sample and ``likelihood_ratio`` (r), ``matching_loss`` (m), ``likelihood_clipped`` (1 where the clip
        removes the gradient), ``clipped_advantage`` (1 where A is cut), ``old_distance`` (mean_D((v - v_old)^2)).

    Raises:
        TypeError: latents in half precision.
    """
    old_BCHW = old_velocity_BCHW.detach()
    loss_B = matching_error(velocity_BCHW, x0_BCHW, noise_BCHW)
    old_loss_B = matching_error(old_BCHW, x0_BCHW, noise_BCHW)
    log_ratio_B = surrogate(old_loss_B, sigma_B, weighting, power) - surrogate(loss_B, sigma_B, weighting, power)
    share_B = (advantage_B / advantage_max).clamp(-1.0, 1.0)
    policy_B, acting = clipped_loss(log_ratio_B.exp(), share_B, clip_low, clip_high)
    distance_B = velocity_distance(velocity_BCHW, old_BCHW)
    metrics = {
        "likelihood_ratio": acting["ratio"],
        "likelihood_clipped": acting["clipped_high"] + acting["clipped_low"],
        "matching_loss": loss_B.detach(),
        "clipped_advantage": (advantage_B.abs() > advantage_max).to(loss_B.dtype),
        "old_distance": distance_B.detach(),
    }
    return ObjectiveOutput(policy_B + old_kl * distance_B, metrics)


def surrogate(loss_B: Tensor, sigma_B: Tensor, weighting: str, power: float) -> Tensor:
    """w(m, sigma), the negative log-likelihood of a flow-matching loss m, shape (B,); c = 1e-10.

    * ``uniform``: m, the paper's choice;
    * ``sigma``: sigma m; ``sigma_squared``: sigma^2 m, the error of the predicted x_0;
    * ``huber``: sigma (sqrt(m + c) - sqrt(c));
    * ``ghuber``: sigma ((m + c)^power - c^power) / power, the published default: what is predicted badly pulls less.

    Raises:
        ValueError: unknown weighting.
    """
    if weighting == "uniform":
        return loss_B
    if weighting == "sigma":
        return sigma_B * loss_B
    if weighting == "sigma_squared":
        return sigma_B.square() * loss_B
    if weighting == "huber":
        return sigma_B * ((loss_B + LOSS_FLOOR).sqrt() - LOSS_FLOOR**0.5)
    if weighting == "ghuber":
        return sigma_B * ((loss_B + LOSS_FLOOR) ** power - LOSS_FLOOR**power) / power
    raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
