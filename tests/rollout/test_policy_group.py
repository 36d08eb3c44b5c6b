# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The pieces without Ray; the group as a whole is run by tests/e2e/test_u4g.py."""

from __future__ import annotations

import pytest

from verl_uae.rollout.policy_group import _interleave


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shares_of_the_ranks_come_back_in_order(ranks: int) -> None:
    items = list(range(7))
    assert _interleave([items[rank::ranks] for rank in range(ranks)], 7) == items
