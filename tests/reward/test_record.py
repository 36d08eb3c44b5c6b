# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import pickle

import pytest
import torch

from verl_uae.errors import RewardError
from verl_uae.reward import RewardRecord, Status, require_enough_valid, to_tensors


def test_status_is_its_word() -> None:
    assert str(Status.TIMEOUT) == f"{Status.TIMEOUT}" == Status.TIMEOUT == "timeout"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_ok_needs_a_finite_value(value: float | None) -> None:
    with pytest.raises(ValueError, match="finite value"):
        RewardRecord(value=value, status=Status.OK)


@pytest.mark.parametrize("status", [Status.INVALID, Status.TIMEOUT, Status.ERROR])
def test_a_failure_has_no_value_and_a_reason(status: Status) -> None:
    with pytest.raises(ValueError, match="no value"):
        RewardRecord(value=0.0, status=status, reason="why")
    with pytest.raises(ValueError, match="reason"):
        RewardRecord(value=None, status=status)
    assert not RewardRecord.failed(status, "why").ok


def test_terms_and_seconds_are_finite() -> None:
    with pytest.raises(ValueError, match="clip"):
        RewardRecord(value=1.0, status=Status.OK, terms={"clip": math.nan})
    with pytest.raises(ValueError, match="seconds"):
        RewardRecord(value=1.0, status=Status.OK, seconds=-1.0)
    with pytest.raises(ValueError, match="not a valid Status"):
        RewardRecord(value=1.0, status="fine")  # type: ignore[arg-type]


def test_record_crosses_a_process_border() -> None:
    record = RewardRecord(value=0.25, status=Status.OK, terms={"pixel": 0.25}, seconds=0.1)
    assert pickle.loads(pickle.dumps(record)) == record


def test_to_tensors_shows_a_forgotten_mask() -> None:
    reward, valid = to_tensors([RewardRecord(0.5, Status.OK), RewardRecord.failed(Status.ERROR, "x")])
    assert reward[0] == 0.5 and math.isnan(reward[1])
    assert torch.equal(valid, torch.tensor([True, False]))


def test_a_mostly_failing_step_stops_the_run() -> None:
    ok, bad = RewardRecord(0.5, Status.OK), RewardRecord.failed(Status.ERROR, "clip: raised OSError")
    require_enough_valid([ok, bad])
    with pytest.raises(RewardError, match=r"2 of 3 .*2 x error: clip: raised OSError"):
        require_enough_valid([ok, bad, bad])
