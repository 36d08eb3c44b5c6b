# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.reward import RewardTerm, get_reward, reward_names
from verl_uae.reward.registry import BUILT_IN, check_term_class


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_term_keeps_the_contract(name: str) -> None:
    check_term_class(get_reward(name))


def test_score_is_required() -> None:
    with pytest.raises(TypeError, match="score"):
        RewardTerm()  # type: ignore[abstract]
    assert set(BUILT_IN) <= set(reward_names())
