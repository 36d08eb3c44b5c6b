# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.registry import register_reward
from verl_uae.reward.scorer import TermSpec
from verl_uae.reward.step import GroupScorer
from verl_uae.reward.term import RewardTerm, Scale

BATCH = RewardBatch(
    torch.zeros(5, 3, 4, 4),
    torch.tensor([0.1, 0.5, 0.9, 0.2, 0.4])[:, None, None, None].expand(5, 3, 4, 4).contiguous(),
    [f"c{index}" for index in range(5)],
    [{} for _ in range(5)],
    ["a", "a", "a", "b", "b"],
)
RECORDS = [RewardRecord(0.1 * index, Status.OK, {"pixel": 0.1 * index}) for index in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Prefers the darker picture, and cannot read a caption that is named."""
    (tmp_path / "judge.py").write_text(
        "def prefer(source, first, second, first_caption, second_caption, row, unreadable=None):\n"
        "    if unreadable in (first_caption, second_caption):\n"
        "        raise ValueError('unreadable')\n"
        "    return float(first.getpixel((0, 0)) < second.getpixel((0, 0)))\n"
    )
    return str(tmp_path / "judge.py")


def spec(path: str, weight: float = 1.0, label: str = "", floor: float | None = None, **params) -> TermSpec:
    given = {"path": path, "params": params}
    return TermSpec(name="preference", weight=weight, params=given, label=label, floor=floor, key="uae.reward.terms[0]")


def test_which_terms_are_groupwise(path: str) -> None:
    assert spec(path).groupwise and not TermSpec(name="pixel").groupwise
    with pytest.raises(ConfigError):
        assert TermSpec(name="nothing").groupwise


def test_a_summed_term_is_added_with_its_weight_and_a_held_out_one_is_only_recorded(path: str) -> None:
    found = GroupScorer([spec(path, 2.0)], [spec(path, label="watched")], 20.0).score(BATCH, RECORDS)
    wins = [1.0, 0.5, 0.0, 1.0, 0.0]
    assert [record.value for record in found] == pytest.approx([0.1 * i + 2.0 * win for i, win in enumerate(wins)])
    assert [dict(record.terms) for record in found] == [
        {"pixel": pytest.approx(0.1 * i), "preference": win, "watched": win} for i, win in enumerate(wins)
    ]


def test_a_sample_without_a_value_takes_part_in_no_comparison(path: str) -> None:
    gone = RewardRecord.failed(Status.TIMEOUT, "late")
    found = GroupScorer([spec(path)], [], 20.0).score(BATCH, [gone, *RECORDS[1:]])
    assert found[0] is gone
    assert [record.terms["preference"] for record in found[1:]] == [1.0, 0.0, 1.0, 0.0]
    assert GroupScorer([spec(path)], [], 20.0).score(BATCH, [gone] * 5) == [gone] * 5


def test_a_summed_term_that_fails_costs_its_sample_and_a_held_out_one_nothing(path: str, caplog) -> None:
    broken = spec(path, unreadable="c0")
    lost, *kept = GroupScorer([broken], [], 20.0).score(BATCH, RECORDS)
    assert lost.value is None and lost.status is Status.ERROR and dict(lost.terms) == {"pixel": 0.0}
    assert [record.terms["preference"] for record in kept] == [1.0, 0.0, 1.0, 0.0]
    with caplog.at_level(logging.WARNING):
        watched = GroupScorer([], [broken], 20.0).score(BATCH, RECORDS)
    assert watched[0] == RECORDS[0] and "missing for 1 samples (1 x error: preference: " in caplog.text
    assert all(record.value == before.value for record, before in zip(watched, RECORDS, strict=True))


def test_a_floor_gates(path: str) -> None:
    found = GroupScorer([spec(path, floor=0.4)], [], 20.0).score(BATCH, RECORDS)
    assert [record.status for record in found] == ["ok", "ok", "invalid", "ok", "invalid"]


@register_reward("test_rank_penalty")
class RankPenalty(RewardTerm):
    """Place of a member in its group by brightness; its direction is a parameter, as that of a function is."""

    needs = frozenset({"reconstruction", "group"})
    bounds = (0.0, 10.0)
    pointwise, groupwise = False, True

    def __init__(self, penalty: bool = False) -> None:
        self.higher_is_better = not penalty

    @classmethod
    def value_scale(cls, params):
        return Scale(cls.bounds, not params.get("penalty", False))

    def score(self, batch):
        shade = batch.reconstruction_B3HW.mean(dim=(1, 2, 3)).tolist()
        return [
            float(sum(a < b for a, g in zip(shade, batch.groups, strict=True) if g == group))
            for b, group in zip(shade, batch.groups, strict=True)
        ]


@pytest.mark.parametrize(("penalty", "sign"), [(False, 1.0), (True, -1.0)])
def test_the_direction_of_a_groupwise_term_counts(penalty: bool, sign: float) -> None:
    given = TermSpec(name="test_rank_penalty", weight=0.5, params={"penalty": penalty}, key="uae.reward.terms[0]")
    found = GroupScorer([given], [], 20.0).score(BATCH, RECORDS)
    places = [0, 1, 2, 0, 1]
    assert [record.value for record in found] == pytest.approx(
        [0.1 * i + sign * 0.5 * place for i, place in enumerate(places)]
    )
