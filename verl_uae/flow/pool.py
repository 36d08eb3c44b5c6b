# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Explore many, train few: which candidates of a group train, by their rewards, and which groups, by their spread.

Sources: ``best_worst`` is Sol-RL (arXiv 2604.06916), ``diverse`` the subset of largest variance (PODS, 2504.13818; the
"optimal variance filtering" of Pro-GRPO, 2512.15347, is the same rule for pictures).

Shape legend: M candidates of a group, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verl_uae.flow.config import CHOICES, Choice


def choose_members(
    reward_M: Tensor, valid_M: Tensor, count: int, how: Choice, generator: torch.Generator
) -> tuple[int, ...]:
    """The candidates of a group that train.

    Args:
        reward_M: rewards, float, shape (M,).
        valid_M: which of them count, bool, shape (M,). The others are taken only where too few count.
        count: how many to choose, 1 to M.
        how: ``best_worst``: the best half and the worst half, an odd one being a worst. ``diverse``: as many of the
            best and of the worst as give the largest variance. ``random``: any, whatever their rewards, as a control.
        generator: of ``random``.

    Returns:
        Their numbers in rising order, so that the updates of a batch, which take consecutive ones, are alike. Among
        equal rewards lower numbers count as worse.

    Raises:
        ValueError: an unknown choice, shapes that do not fit, or a count that there is not.

    Example:
        >>> reward, valid = torch.tensor([0.9, 0.5, 0.1, 0.7, 0.4]), torch.ones(5, dtype=torch.bool)
        >>> choose_members(reward, valid, 2, "best_worst", torch.Generator())
        (0, 2)
    """
    if how not in CHOICES:
        raise ValueError(f"choose must be one of {', '.join(CHOICES)}, got {how!r}")
    if reward_M.ndim != 1 or valid_M.shape != reward_M.shape or valid_M.dtype != torch.bool:
        raise ValueError(f"rewards of shape {tuple(reward_M.shape)}, valid_M {valid_M.dtype} {tuple(valid_M.shape)}")
    if not 1 <= count <= len(reward_M):
        raise ValueError(f"cannot choose {count} of {len(reward_M)} candidates")
    valid = valid_M.nonzero().flatten().tolist()
    if len(valid) <= count:
        others = (~valid_M).nonzero().flatten().tolist()
        return tuple(sorted(valid + others[: count - len(valid)]))
    if how == "random":
        order = torch.randperm(len(valid), generator=generator).tolist()
        return tuple(sorted(valid[place] for place in order[:count]))
    rewards = reward_M.double()
    ranked = [valid[place] for place in rewards[valid].argsort(stable=True).tolist()]
    best = count // 2
    if how == "diverse":
        best = max(range(count + 1), key=lambda number: _variance_first(rewards[_ends(ranked, number, count)], number))
    return tuple(sorted(_ends(ranked, best, count)))


def choose_groups(spread_G: Sequence[float], tied_G: Sequence[bool], count: int, *, widest: bool) -> list[int]:
    """The groups of a batch that train.

    Args:
        spread_G: standard deviation of each group's rewards, at least 0.
        tied_G: which groups are no signal; they are taken last.
        count: how many to choose, 1 to G.
        widest: those that spread most; else the first ones.

    Returns:
        Their numbers in rising order.

    Raises:
        ValueError: a count that there is not.
    """
    if not 1 <= count <= len(spread_G):
        raise ValueError(f"cannot choose {count} of {len(spread_G)} groups")
    order = sorted(range(len(spread_G)), key=lambda group: (tied_G[group], -spread_G[group] if widest else 0.0, group))
    return sorted(order[:count])


def rank_agreement(first_M: Tensor, second_M: Tensor) -> float:
    """Kendall's tau-a of two rewards of the same pictures: pairs in the same order less pairs in the opposite one, over
    all pairs; in [-1, 1], and 0 for fewer than two. A pair that is equal in one of them counts for neither."""
    pairs = len(first_M) * (len(first_M) - 1)
    if not pairs:
        return 0.0
    signs = [(rewards[:, None] - rewards[None, :]).sign() for rewards in (first_M.double(), second_M.double())]
    return float((signs[0] * signs[1]).sum()) / pairs


def _ends(ranked: list[int], best: int, count: int) -> list[int]:
    """The last ``best`` of a ranking, and from its beginning what is missing."""
    return ranked[: count - best] + ranked[len(ranked) - best :]


def _variance_first(reward_C: Tensor, best: int) -> tuple[float, int]:
    """Larger is better; among equal variances the more even split."""
    return float(reward_C.var(correction=0)), -abs(2 * best - len(reward_C))
