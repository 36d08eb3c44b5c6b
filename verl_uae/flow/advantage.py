# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Group-relative advantages that survive missing rewards.

Shape legend: N samples, any number per group; B of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_uae.flow.config import STDS, Std

#: verl's and GRPO's guard against division by zero.
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class AdvantageStats:
    """What became of the groups of one batch."""

    groups: int
    """All groups."""
    dropped_groups: int
    """Groups with fewer than two valid members: nothing to compare."""
    dropped_samples: int
    """Valid members of the dropped groups."""
    zero_std_groups: int
    """Groups kept, but with too small a spread to be a signal."""
    invalid: int
    """Samples without a valid reward."""
    clamped: int = 0
    """Samples whose advantage was cut to the clamp. Many of them hide outliers of the reward."""


def group_advantage(
    reward_N: Tensor,
    valid_N: Tensor,
    group_N: Tensor | Sequence[Hashable],
    *,
    min_std: float = 1e-3,
    std: Std = "group",
    clamp: float | None = None,
) -> tuple[Tensor, AdvantageStats]:
    """Advantage of each sample over the mean of its group's valid members.

    ``(reward - mean_group) / (std + 1e-6)`` with the unbiased standard deviation, bit-equal to verl's
    ``compute_grpo_outcome_advantage`` (GRPO, Shao et al. 2024, section 4.1.2) for a group of two or more that is all
    valid and spread by at least ``min_std``. The differences are what verl leaves open:

    * an invalid member has advantage 0 and no part in any statistic, whatever its reward holds, NaN included;
    * a group with fewer than two valid members is dropped: advantage 0 (verl: the raw reward);
    * a group whose standard deviation is below ``min_std`` is no signal: advantage 0. Similarity rewards live in a
      narrow band, and division by a tiny spread makes rounding noise as large as a real difference.

    Args:
        reward_N: rewards, float, shape (N,).
        valid_N: which of them count, bool, shape (N,).
        group_N: group of each sample: integers of shape (N,), or any hashable names.
        min_std: smallest standard deviation that is a signal, in units of the reward. The default suits rewards with a
            range of about 1 (a thousandth of it); scale it with yours. 0 switches the floor off. Our choice.
        std: what to divide by: the ``group``'s standard deviation (GRPO, DanceGRPO), that of all valid members of
            all kept groups of the batch (``global``: Flow-GRPO), or nothing (``none``: Dr.GRPO). Only with ``global``
            does a group's advantage depend on other groups.
        clamp: largest size of an advantage, > 0; larger ones are cut to it after the division (Flow-GRPO's code: 5).
            None: no limit.

    Returns:
        advantage_N: shape (N,), dtype and device of ``reward_N``, always finite.
        stats: counts of what was left out.

    Raises:
        ValueError: shapes or types do not fit, an unknown ``std``, or a reward that is called valid is not finite.

    Example:
        Two groups of three; a member of the second has no reward.

        >>> reward, valid = torch.tensor([0.2, 0.4, 0.6, 0.1, 0.3, torch.nan]), torch.tensor([True] * 5 + [False])
        >>> advantage, stats = group_advantage(reward, valid, ["a", "a", "a", "b", "b", "b"])
        >>> [round(value, 3) for value in advantage.tolist()]
        [-1.0, 0.0, 1.0, -0.707, 0.707, 0.0]
        >>> stats.invalid
        1
    """
    names = group_N.tolist() if isinstance(group_N, Tensor) else list(group_N)
    _check(reward_N, valid_N, names, min_std, std, clamp)
    reward_N = reward_N.detach()
    advantage_N = torch.zeros_like(reward_N)
    valid = valid_N.tolist()
    members: dict[Hashable, list[int]] = {}
    for position, name in enumerate(names):
        members.setdefault(name, [])
        if valid[position]:
            members[name].append(position)
    kept = [positions for positions in members.values() if len(positions) >= 2]
    zero_std = 0
    global_std = _global_std(reward_N, kept) if std == "global" else None
    for positions in kept:
        reward_G = reward_N[positions]
        group_std = reward_G.std()
        if is_tied(reward_G, min_std):
            zero_std += 1
            continue
        centred_G = reward_G - reward_G.mean()
        divisor = {"group": group_std, "global": global_std, "none": None}[std]
        advantage_N[positions] = centred_G if divisor is None else centred_G / (divisor + EPSILON)
    clamped = 0
    if clamp is not None:
        clamped = int((advantage_N.abs() > clamp).sum())
        advantage_N = advantage_N.clamp(-clamp, clamp)
    dropped = [positions for positions in members.values() if len(positions) < 2]
    return advantage_N, AdvantageStats(
        groups=len(members),
        dropped_groups=len(dropped),
        dropped_samples=sum(len(positions) for positions in dropped),
        zero_std_groups=zero_std,
        invalid=len(valid) - sum(valid),
        clamped=clamped,
    )


def is_tied(reward_G: Tensor, min_std: float) -> bool:
    """Whether the rewards of a group, shape (G,), two or more, are no signal: they spread by less than ``min_std``, or
    are all the same. Those have a standard deviation of 0 only up to the rounding of their mean, so they are tied with
    the floor off too."""
    return bool(reward_G.std() < min_std) or bool(reward_G.max() == reward_G.min())


def unit_reward(advantage_B: Tensor, advantage_max: float) -> Tensor:
    """0.5 + 0.5 clip(A / advantage_max, -1, 1), shape (B,): what forward-process objectives take for a reward in [0, 1]
    (DiffusionNFT, arXiv 2509.16117)."""
    return 0.5 + 0.5 * (advantage_B / advantage_max).clamp(-1.0, 1.0)


def group_means(value_NK: Tensor, valid_N: Tensor, group_N: Tensor) -> dict[int, Tensor]:
    """Mean of each column over the valid members of each group.

    Args:
        value_NK: numbers of N samples, K of each, any float; those of an invalid member may be anything, NaN included.
        valid_N: which samples count, bool, shape (N,).
        group_N: group of each sample, whole numbers, shape (N,).

    Returns:
        Group to its K means, fp64; 0 for a group without a valid member.
    """
    means = {}
    for group in group_N.unique().tolist():
        rows = value_NK[(group_N == group) & valid_N].double()
        means[group] = rows.mean(0) if len(rows) else value_NK.new_zeros(value_NK.shape[1], dtype=torch.float64)
    return means


def _global_std(reward_N: Tensor, kept: list[list[int]]) -> Tensor | None:
    """Standard deviation of all members of the kept groups, in their order in the batch."""
    positions = sorted(position for group in kept for position in group)
    return reward_N[positions].std() if positions else None


def _check(
    reward_N: Tensor, valid_N: Tensor, names: Sequence[Hashable], min_std: float, std: str, clamp: float | None
) -> None:
    if reward_N.ndim != 1 or not reward_N.is_floating_point():
        raise ValueError(f"reward_N must be float of shape (N,), got {reward_N.dtype} {tuple(reward_N.shape)}")
    if valid_N.shape != reward_N.shape or valid_N.dtype != torch.bool or len(names) != len(reward_N):
        raise ValueError(
            f"{len(reward_N)} rewards, {len(names)} group names, valid_N {valid_N.dtype} {tuple(valid_N.shape)}"
        )
    if std not in STDS:
        raise ValueError(f"std must be one of {', '.join(STDS)}, got {std!r}")
    if not min_std >= 0.0:
        raise ValueError(f"min_std must be at least 0, got {min_std}")
    if clamp is not None and not clamp > 0.0:
        raise ValueError(f"clamp must be above 0, got {clamp}")
    unusable = (valid_N & ~torch.isfinite(reward_N)).nonzero().flatten().tolist()
    if unusable:
        raise ValueError(f"rewards {unusable[:8]} are marked valid but are not finite")
