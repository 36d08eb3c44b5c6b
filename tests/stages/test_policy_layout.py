# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.stages.u4g.worker import Layout


@pytest.mark.parametrize(("updates", "ranks"), [(1, 1), (2, 1), (1, 2), (2, 4), (4, 3)])
def test_every_sample_is_drawn_once_and_trained_once(updates: int, ranks: int) -> None:
    layout = Layout(sources=6, members=8, updates=updates, ranks=ranks)
    drawn = [number for rank in range(ranks) for number in layout.of_rank(rank)]
    assert sorted(drawn) == list(range(48))
    assert {len(layout.of_rank(rank)) for rank in range(ranks)} == {48 // ranks}


def test_an_update_trains_the_same_samples_however_many_ranks_there_are() -> None:
    for update in range(2):
        sets = []
        for ranks in (1, 2, 3):
            layout = Layout(sources=6, members=4, updates=2, ranks=ranks)
            sets.append(sorted(number for rank in range(ranks) for number in layout.of_update(update, rank)))
        assert sets[0] == sets[1] == sets[2]


def test_every_update_sees_every_group() -> None:
    layout = Layout(sources=5, members=4, updates=2, ranks=1)
    for update in range(2):
        assert {number // 4 for number in layout.of_update(update, 0)} == set(range(5))


def test_a_chosen_picture_is_a_member_of_the_pool() -> None:
    plain = Layout(sources=2, members=3, updates=1, ranks=1)
    assert [plain.member(number) for number in plain.of_rank(0)] == [0, 1, 2, 0, 1, 2]
    chosen = Layout(sources=2, members=3, updates=1, ranks=1, candidates=(4, 5, 9, 0, 2, 7))
    assert [chosen.member(number) for number in chosen.of_rank(0)] == [4, 5, 9, 0, 2, 7]
    with pytest.raises(ValueError, match="5 candidates for 2 x 3 pictures"):
        Layout(sources=2, members=3, updates=1, ranks=1, candidates=(0, 1, 2, 3, 4))


def test_uneven_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="do not split evenly"):
        Layout(sources=3, members=4, updates=3, ranks=1)
    with pytest.raises(ValueError, match="do not split evenly"):
        Layout(sources=3, members=4, updates=2, ranks=4)
