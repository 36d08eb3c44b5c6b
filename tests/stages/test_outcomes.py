# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.samples import caption, lost, scored
from verl_uae.chain.records import Caption
from verl_uae.errors import RewardError
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.stages.common.outcomes import (
    MOST_KINDS,
    Losses,
    group_metrics,
    outcome_metrics,
    usable_members,
    validation_info,
)

BAD = lost()
LATE = lost("no caption in 3 s", Status.TIMEOUT)


def test_usable_members_need_a_value_and_a_valid_neighbour() -> None:
    outcomes = [scored(0.1), scored(0.2), BAD, scored(0.3), LATE, BAD, scored(0.0)]
    groups = ["a", "a", "a", "b", "b", "c", "d"]
    assert usable_members(outcomes, groups) == [True, True, False, False, False, False, False]
    assert usable_members([scored(0.0), scored(0.0)], ["a", "a"]) == [True, True], "0.0 is a value"


def test_too_many_failures_stop_the_run_with_the_reasons() -> None:
    outcomes = [scored(0.5), scored(0.5), BAD, BAD, BAD, LATE]
    with pytest.raises(RewardError) as caught:
        Losses(0.5).check(outcomes)
    text = str(caught.value)
    assert "4 of 6 samples have no reward" in text and "max_invalid_fraction=0.5" in text
    assert text.endswith("3 x error: decoder: OSError: gone; 1 x timeout: no caption in 3 s")
    Losses(0.5).check([scored(0.5), BAD])
    Losses(1.0).check([scored(0.5), BAD, BAD])


def test_equal_reasons_are_added_up_whatever_their_numbers() -> None:
    bad = [replace(BAD, record=RewardRecord.failed(Status.ERROR, f"caption {row}: gone")) for row in (7, 8, 9)]
    with pytest.raises(RewardError, match=r": 3 x error: caption 7: gone$"):
        Losses(0.5).check(bad)


def test_no_reward_at_all_stops_the_run_whatever_is_tolerated() -> None:
    with pytest.raises(RewardError, match="2 of 2"):
        Losses(1.0).check([BAD, BAD])


def test_what_samples_are_lost_to_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses(1.0)
    row = "error: custom: raised KeyError: 'row {}' (/home/me/my_reward.py, line 12)"
    first, second = (lost(row.format(number).removeprefix("error: ")) for number in (3, 14))
    losses.check([scored(0.5), first, second, LATE])
    assert [record.getMessage().split(" (further")[0] for record in caplog.records] == [
        f"2 of 4 samples have no reward: {row.format(3)}",
        "1 of 4 samples have no reward: timeout: no caption in 3 s",
    ]
    losses.check([scored(0.5), second, LATE])
    assert len(caplog.records) == 2, "numbers make no new kind"
    losses.check([scored(0.5), BAD])
    assert "decoder: OSError: gone" in caplog.records[-1].getMessage()


def test_odd_reasons_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    letters = [chr(ord("A") + number) for number in range(26)]
    Losses(1.0).check([scored(1.0), *(lost(a + b) for a in letters for b in letters)])
    assert len(caplog.records) == MOST_KINDS


def test_metrics_leave_missing_values_out() -> None:
    outcomes = [scored(0.2, pixel=0.2, ssim=0.4), scored(0.6, pixel=0.6), BAD, LATE]
    captions = [caption(), caption("", tokens=1), caption("two words", cut=True), Caption.failed("d", "late")]
    metrics = outcome_metrics(outcomes, captions, ["a", "a", "b", "b"], min_std=1e-3)
    assert metrics["reward/score/mean"] == pytest.approx(0.4)
    assert metrics["reward/score/std"] == pytest.approx(0.2)
    assert metrics["reward/ssim/mean"] == pytest.approx(0.4) and metrics["reward/ssim/std"] == 0.0
    assert metrics["reward/status/error"] == metrics["reward/status/timeout"] == 0.25
    assert metrics["reward/status/invalid"] == 0.0
    assert metrics["reward/invalid_frac"] == 0.5
    assert metrics["reward/dropped_groups"] == 1.0 and metrics["reward/groups"] == 2.0
    assert metrics["caption/words/mean"] == pytest.approx(5 / 3)
    assert metrics["caption/tokens/mean"] == pytest.approx(3.0)
    assert metrics["caption/cut_frac"] == metrics["caption/empty_frac"] == pytest.approx(1 / 3)
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_batch_without_captions_has_no_caption_metrics() -> None:
    metrics = outcome_metrics([LATE], [Caption.failed("d", "late")], ["a"], min_std=1e-3)
    assert "caption/words/mean" not in metrics and "reward/score/mean" not in metrics


def test_group_metrics() -> None:
    outcomes = [scored(0.2), scored(0.2), scored(0.1), scored(0.9), scored(0.4), BAD]
    metrics = group_metrics(outcomes, ["a", "a", "b", "b", "c", "c"], min_std=1e-3)
    assert metrics["reward/zero_std_groups"] == 1.0 and metrics["reward/zero_std_frac"] == pytest.approx(1 / 3)
    assert metrics["reward/dropped_samples"] == 1.0


def test_validation_info_is_flat_and_complete() -> None:
    info = validation_info(scored(0.5), caption())
    assert info == {
        "term_pixel": 0.5,
        "caption_words": 3.0,
        "caption_cut": 0.0,
        "caption": "a red circle",
        "status": "ok",
    }
