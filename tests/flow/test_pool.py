# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Choices against all that could have been chosen."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import kendalltau

from verl_uae.flow.config import CHOICES
from verl_uae.flow.pool import choose_groups, choose_members, rank_agreement
from verl_uae.seeding import generator, normal


def chosen(rewards: list[float], count: int, how: Any, *, lost: tuple[int, ...] = (), draw: int = 0) -> tuple[int, ...]:
    valid = torch.tensor([member not in lost for member in range(len(rewards))])
    values = [float("nan") if member in lost else reward for member, reward in enumerate(rewards)]
    return choose_members(torch.tensor(values), valid, count, how, generator("test", draw))


def subsets(rewards: list[float], count: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(len(rewards)), count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("seed", range(6))
def test_best_and_worst_are_the_ends_of_the_ranking(seed: int, count: int) -> None:
    rewards = normal((8,), "rewards", seed).tolist()
    ranked = sorted(range(8), key=rewards.__getitem__)
    expected = ranked[: count - count // 2] + ranked[8 - count // 2 :]
    assert chosen(rewards, count, "best_worst") == tuple(sorted(expected))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(8))
def test_the_diverse_ones_have_the_largest_variance_of_all_subsets(seed: int, count: int) -> None:
    """Skewed rewards, where the even split is not the best one."""
    rewards = normal((8,), "skewed", seed).exp().pow(2).tolist()
    largest = max(statistics.pvariance([rewards[member] for member in some]) for some in subsets(rewards, count))
    found = chosen(rewards, count, "diverse")
    assert len(set(found)) == count and list(found) == sorted(found)
    assert statistics.pvariance([rewards[member] for member in found]) == pytest.approx(largest, rel=1e-6)


def test_the_diverse_ones_of_a_reward_that_few_get_are_not_the_even_split() -> None:
    rewards = [0.0, 0.0, 0.0, 0.0, 0.3, 0.3, 0.3, 1.0]
    assert 7 in chosen(rewards, 4, "diverse") and chosen(rewards, 4, "diverse") == (0, 1, 2, 7)
    assert chosen(rewards, 4, "best_worst") == (0, 1, 6, 7)


def test_random_ones_are_every_subset_equally_often_and_see_no_reward() -> None:
    counts = Counter(chosen([0.0, 0.0, 0.0, 9.0], 2, "random", draw=draw) for draw in range(1200))
    assert set(counts) == set(subsets([0.0] * 4, 2))
    # Standard deviation of a count is 13.
    assert all(abs(count - 200) < 60 for count in counts.values())
    for draw in range(9):
        assert chosen([0.1, 5.0, 2.0, 7.0], 2, "random", draw=draw) == chosen([0.0] * 4, 2, "random", draw=draw)


@pytest.mark.parametrize("how", CHOICES)
def test_what_has_no_reward_is_taken_only_where_too_few_have_one(how: str) -> None:
    rewards = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2]
    assert not {1, 2} & set(chosen(rewards, 4, how, lost=(1, 2)))
    assert chosen(rewards, 4, how, lost=(0, 1, 2)) == (0, 3, 4, 5)
    assert chosen(rewards, 3, how, lost=tuple(range(6))) == (0, 1, 2)
    assert chosen(rewards, 6, how) == tuple(range(6))


@pytest.mark.parametrize("how", ["best_worst", "diverse"])
def test_equal_rewards_are_told_apart_by_their_number(how: str) -> None:
    assert chosen([0.5] * 6, 4, how) == (0, 1, 4, 5)


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="choose must be one of best_worst, diverse, random, got 'best'"):
        chosen([0.0, 1.0], 1, "best")
    with pytest.raises(ValueError, match="cannot choose 3 of 2 candidates"):
        chosen([0.0, 1.0], 3, "diverse")
    with pytest.raises(ValueError, match="valid_M"):
        choose_members(torch.zeros(3), torch.zeros(2).bool(), 1, "random", generator(0))
    with pytest.raises(ValueError, match="cannot choose 0 of 2 groups"):
        choose_groups([0.1, 0.2], [False, False], 0, widest=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_widest_groups_have_the_largest_sum_of_spreads(seed: int) -> None:
    spreads = normal((7,), "spreads", seed).abs().tolist()
    found = choose_groups(spreads, [False] * 7, 3, widest=True)
    best = max(sum(spreads[group] for group in some) for some in subsets(spreads, 3))
    assert sum(spreads[group] for group in found) == pytest.approx(best) and found == sorted(found)


def test_tied_groups_are_taken_last() -> None:
    ties = [True, False, False, True, False]
    assert choose_groups([9.0, 1.0, 2.0, 8.0, 3.0], ties, 2, widest=True) == [2, 4]
    assert choose_groups([9.0, 1.0, 2.0, 8.0, 3.0], ties, 2, widest=False) == [1, 2]
    assert choose_groups([9.0, 1.0, 2.0, 8.0, 3.0], ties, 4, widest=False) == [0, 1, 2, 4]


@pytest.mark.parametrize("seed", range(4))
def test_rank_agreement_is_kendalls_tau(seed: int) -> None:
    first, second = normal((9,), "first", seed), normal((9,), "second", seed)
    assert rank_agreement(first, second) == pytest.approx(kendalltau(first.numpy(), second.numpy()).statistic)
    assert rank_agreement(first, 3 * first + 1) == 1.0 and rank_agreement(first, -first) == -1.0


def test_rank_agreement_of_ties_and_of_one() -> None:
    assert rank_agreement(torch.tensor([1.0]), torch.tensor([1.0])) == 0.0
    assert rank_agreement(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(2 / 3)
