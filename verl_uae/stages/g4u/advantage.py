# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The advantage estimator ``uae_grpo``: verl's GRPO with missing members and a floor on the std.

Shape legend: N samples, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from verl_uae.flow.advantage import group_advantage

#: Key our trainers add to ``algorithm`` at start: ``{min_std, std}`` of ``uae.reward``.
SETTINGS_KEY = "uae"


@register_adv_est("uae_grpo")
def uae_grpo(
    token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[Any], config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Outcome advantage relative to the group, for every token of a response.

    A sample without a valid reward arrives with an all-zero response mask (padding rows do too): it has no
    advantage and does not enter its group's statistics. See
    :func:`~verl_uae.flow.advantage.group_advantage` for the formula.

    Args:
        token_level_rewards: rewards, shape (N, T), summed over T.
        response_mask: 1 at trained tokens, shape (N, T).
        index: group of each sample (N).
        config: verl's ``algorithm`` section with our settings under ``uae``.

    Returns:
        advantages and returns, both (N, T), equal.
    """
    settings = dict((config or {}).get(SETTINGS_KEY) or {})
    valid_N = response_mask.bool().any(dim=-1)
    reward_N = (token_level_rewards * response_mask).sum(dim=-1)
    advantage_N, _stats = group_advantage(reward_N, valid_N, list(index), **settings)
    advantage_NT = advantage_N.unsqueeze(-1) * response_mask
    return advantage_NT, advantage_NT
