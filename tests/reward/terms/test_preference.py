# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from verl_uae.errors import ConfigError, RewardError
from verl_uae.reward import RewardBatch, RewardScorer, TermSpec
from verl_uae.reward.terms.preference import comparisons

HEADER = "import asyncio, time\n"


def judge(
    folder: Path, body: str, head: str = "def prefer(source, first, second, first_caption, second_caption, row)"
) -> str:
    path = folder / f"judge_{abs(hash(body + head))}.py"
    path.write_text(f"{HEADER}{head}:\n    {body}\n")
    return str(path)


def make_batch(shades: list[float], groups: list[str]) -> RewardBatch:
    """Grey reconstructions of black pictures: the darker, the better."""
    count = len(shades)
    drawn = torch.tensor(shades)[:, None, None, None].expand(count, 3, 8, 8).contiguous()
    rows = [{"extra_info": {"index": index}} for index in range(count)]
    return RewardBatch(torch.zeros(count, 3, 8, 8), drawn, [f"shade {s}" for s in shades], rows, groups)


def values(path: str, batch: RewardBatch, timeout_s: float = 20.0, **params) -> list[float | None]:
    scorer = RewardScorer([("preference", 1.0, {"path": path, **params})], timeout_s=timeout_s)
    return [record.value for record in scorer.score(batch)]


DARKER = "return float(first.getpixel((0, 0)) < second.getpixel((0, 0)))"
SHADES = [0.1, 0.9, 0.5, 0.3, 0.7]


def test_a_perfect_judge_gives_the_rank_within_the_group(tmp_path: Path) -> None:
    found = values(judge(tmp_path, DARKER), make_batch(SHADES, ["a"] * 3 + ["b"] * 2))
    assert found == [1.0, 0.0, 0.5, 1.0, 0.0]


def test_a_judge_that_likes_the_first_place_says_nothing_when_both_orders_are_asked(tmp_path: Path) -> None:
    batch = make_batch(SHADES, ["a"] * 5)
    assert values(judge(tmp_path, "return True"), batch) == [0.5] * 5
    biased = "return 0.7 * (first.getpixel((0, 0)) < second.getpixel((0, 0))) + 0.3"
    # By hand: the better one wins with (1.0 + 0.7) / 2, the worse one with the rest.
    better = 0.85
    expected = [better, 1 - better, 0.5, (3 * better + 1 - better) / 4, (better + 3 * (1 - better)) / 4]
    assert values(judge(tmp_path, biased), batch) == pytest.approx(expected)


@pytest.mark.parametrize("both_orders", [True, False])
@pytest.mark.parametrize(("opponents", "each"), [(None, 5), (1, 2), (2, 4), (3, 5), (99, 5)])
def test_every_member_is_compared_equally_often(both_orders: bool, opponents: int | None, each: int) -> None:
    groups = ["a", "b"] * 6
    asked = comparisons(groups, opponents, both_orders)
    assert all(groups[one.first] == groups[one.second] and one.first != one.second for one in asked)
    assert len(set(asked)) == len(asked)
    factor = 2 if both_orders else 1
    seen = Counter(index for one in asked for index in (one.first, one.second))
    assert set(seen.values()) == {each * factor} and len(seen) == 12
    if not both_orders:
        first = Counter(one.first for one in asked)
        assert max(first.values()) < each or each == 2


def test_failed_comparisons_cost_themselves(tmp_path: Path) -> None:
    body = f"if '0.9' in first_caption + second_caption: raise ValueError('no')\n    {DARKER}"
    batch = make_batch(SHADES[:3], ["a"] * 3)
    scorer = RewardScorer([("preference", 1.0, {"path": judge(tmp_path, body)})])
    one, bad, other = scorer.score(batch)
    assert (one.value, other.value) == (1.0, 0.0), "what is left of its comparisons"
    assert bad.value is None and bad.status == "error" and "ValueError: no" in (bad.reason or "")


def test_without_any_comparison_the_reason_is_that_of_the_first(tmp_path: Path) -> None:
    body = "raise ValueError(f'{first_caption} or {second_caption}')"
    scorer = RewardScorer([("preference", 1.0, {"path": judge(tmp_path, body), "num_threads": 1})])
    reasons = [record.reason or "" for record in scorer.score(make_batch(SHADES[:3], ["a"] * 3))]
    firsts = ["shade 0.1 or shade 0.9", "shade 0.1 or shade 0.9", "shade 0.1 or shade 0.5"]
    assert all(first in reason for first, reason in zip(firsts, reasons, strict=True))


@pytest.mark.parametrize("answer", ["None", "'A'", "float('nan')", "1.5", "-0.1", "[1]"])
def test_no_probability_is_invalid(tmp_path: Path, answer: str) -> None:
    scorer = RewardScorer([("preference", 1.0, {"path": judge(tmp_path, f"return {answer}")})])
    assert {record.status for record in scorer.score(make_batch(SHADES[:2], ["a"] * 2))} == {"invalid"}


def test_a_member_alone_has_nobody_to_be_preferred_to(tmp_path: Path) -> None:
    scorer = RewardScorer([("preference", 1.0, {"path": judge(tmp_path, "return 1.0")})])
    alone, *_ = scorer.score(make_batch(SHADES[:3], ["a", "b", "b"]))
    assert alone.status == "invalid" and "no other member" in (alone.reason or "")


@pytest.mark.parametrize("head", ["def", "async def"])
def test_a_late_judge_is_a_timeout(tmp_path: Path, head: str) -> None:
    wait = "await asyncio.sleep(30)" if head.startswith("async") else "time.sleep(1.5)"
    full = f"{head} prefer(source, first, second, first_caption, second_caption, row)"
    path = judge(tmp_path, f"{wait}\n    return 1.0", full)
    scorer = RewardScorer([("preference", 1.0, {"path": path})], timeout_s=0.3)
    started = time.monotonic()
    records = scorer.score(make_batch(SHADES[:2], ["a"] * 2))
    assert {record.status for record in records} == {"timeout"} and time.monotonic() - started < 1.3


def test_a_coroutine_judges_too(tmp_path: Path) -> None:
    head = "async def prefer(source, first, second, first_caption, second_caption, row)"
    path = judge(tmp_path, f"await asyncio.sleep(0)\n    {DARKER}", head)
    assert values(path, make_batch(SHADES, ["a"] * 5))[0] == 1.0


def test_parameters_and_the_row_reach_the_judge(tmp_path: Path) -> None:
    head = "def choose(source, first, second, first_caption, second_caption, row, wanted)"
    path = judge(tmp_path, "return float(first_caption == wanted) if source.size == (8, 8) else 0", head)
    params = {"name": "choose", "params": {"wanted": "shade 0.5"}, "both_orders": False, "opponents": 1}
    found = values(path, make_batch(SHADES[:3], ["a"] * 3), **params)
    assert found[2] is not None and found[2] > max(found[0] or 0, found[1] or 0)


def test_a_judge_has_a_row_of_its_own(tmp_path: Path) -> None:
    batch = make_batch(SHADES, ["a"] * 5)
    path = judge(tmp_path, f"row['extra_info'].pop('index')\n    {DARKER}")
    assert values(path, batch) == values(judge(tmp_path, DARKER), batch)
    assert batch.rows is not None and all("index" in row["extra_info"] for row in batch.rows)


def test_reasons_name_the_label(tmp_path: Path) -> None:
    """Two judges of one run are told apart by it."""
    for body, groups in (("raise ValueError('no')", "aa"), ("return None", "aa"), ("return 1.0", "ab")):
        spec = TermSpec(name="preference", params={"path": judge(tmp_path, body)}, label="strict judge")
        for record in RewardScorer([spec]).score(make_batch(SHADES[:2], list(groups))):
            assert (record.reason or "").startswith("strict judge: ")


def test_impossible_settings_are_refused_before_anything_runs(tmp_path: Path, caplog) -> None:
    good = judge(tmp_path, "return 1.0")
    cases = {
        "num_threads": {"path": good, "num_threads": 0},
        "opponents": {"path": good, "opponents": 0},
        "name": {"path": good, "name": "missing"},
        "params": {"path": good, "params": {"row": 1}},
        "path": {"path": str(tmp_path / "none.py")},
    }
    for key, params in cases.items():
        with pytest.raises(ConfigError) as error:
            RewardScorer([("preference", 1.0, params)])
        assert error.value.key == f"uae.reward.terms[0].params.{key}"
    wrong = judge(tmp_path, "return 1.0", "def prefer(source, first)")
    with pytest.raises(ConfigError, match="must take source, first, second"):
        RewardScorer([("preference", 1.0, {"path": wrong})])
    with caplog.at_level(logging.INFO):
        RewardScorer([("preference", 1.0, {"path": good})])
    assert "sha256" in caplog.text and "prefer(source, first" in caplog.text


def test_groups_are_needed(tmp_path: Path) -> None:
    scorer = RewardScorer([("preference", 1.0, {"path": judge(tmp_path, "return 1.0")})])
    with pytest.raises(RewardError, match="needs a group"):
        scorer.score(replace(make_batch(SHADES[:2], ["a"] * 2), groups=None))
