# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The loss and its gradient are compared with autograd through everything by tests/engines/test_cold_start.py."""

from __future__ import annotations

import torch

from verl_uae.stages.cold_start.loss import answer_states


def test_answer_states_are_moved_to_the_front_and_cut() -> None:
    hidden_BTE = torch.arange(12.0).view(2, 3, 2)
    answer_BT = torch.tensor([[False, True, True], [False, False, True]])
    found = answer_states(hidden_BTE, answer_BT, 3)
    assert found.tolist() == [[[2, 3], [4, 5], [0, 0]], [[10, 11], [0, 0], [0, 0]]]
    assert answer_states(hidden_BTE, answer_BT, 1).tolist() == [[[2, 3]], [[10, 11]]]
