# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import pickle
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_uae.flow.advantage import group_advantage
from verl_uae.reward import RewardBatch, RewardRecord, Status, to_tensors
from verl_uae.reward.record import Origin, Scoring, WrongAnswerError, as_number, as_record, as_rows, describe_error


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


def test_take_keeps_order_and_repeats(make_batch) -> None:
    batch = make_batch(4)
    taken = batch.take([3, 0, 3])
    assert torch.equal(taken.source_B3HW, batch.source_B3HW[[3, 0, 3]])
    assert list(taken.captions) == ["caption 3", "caption 0", "caption 3"]
    assert [row["ground_truth"] for row in taken.rows] == [3, 0, 3]


def test_half_precision_becomes_fp32(make_batch) -> None:
    batch = make_batch(2)
    half = RewardBatch(batch.source_B3HW.bfloat16(), batch.reconstruction_B3HW.bfloat16())
    assert half.source_B3HW.dtype == half.reconstruction_B3HW.dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.5, -0.5])
@pytest.mark.parametrize("part", ["source_B3HW", "reconstruction_B3HW"])
def test_unusable_pixels_are_found(make_batch, part: str, value: float) -> None:
    batch = make_batch(3)
    getattr(batch, part)[1, 2, 3, 4] = value
    assert list(batch.unusable()) == [1]
    assert part.split("_")[0] in batch.unusable()[1]


def test_misfits_are_refused(make_batch) -> None:
    batch = make_batch(2)
    source, reconstruction = batch.source_B3HW, batch.reconstruction_B3HW
    with pytest.raises(ValueError, match="differ"):
        RewardBatch(source, reconstruction[:1])
    with pytest.raises(ValueError, match="must be float"):
        RewardBatch((source * 255).byte(), (reconstruction * 255).byte())
    with pytest.raises(ValueError, match="must be float"):
        RewardBatch(source[:, :, :0], reconstruction[:, :, :0])
    with pytest.raises(ValueError, match="1 captions for 2"):
        RewardBatch(source, reconstruction, captions=["one"])
    with pytest.raises(ValueError, match="without a value"):
        RewardBatch(source, reconstruction, failed={0: RewardRecord(1.0, Status.OK)})
    with pytest.raises(ValueError, match=r"failed\[7\]"):
        RewardBatch(source, reconstruction, failed={7: RewardRecord.failed(Status.ERROR, "decoder")})


def test_a_sample_keeps_its_place_through_every_selection(make_batch) -> None:
    batch = replace(make_batch(5), origin=Origin(Scoring(), (0, 1, 2, 3, 4)))
    part = batch.take([4, 2, 2, 0]).take([3, 0, 1])
    assert part.origin == Origin(batch.origin.batch, (0, 4, 2))
    assert torch.equal(part.source_B3HW, batch.source_B3HW[[0, 4, 2]]) and part.captions[1] == batch.captions[4]


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (torch.tensor(0.25), 0.25),
        (torch.tensor([0.25]), 0.25),
        (np.array([[3]]), 3.0),
        (10**400, math.inf),
        (None, None),
        ("1.0", None),
        ([1.0], None),
        (1 + 2j, None),
        (torch.zeros(2), None),
        (np.array("text"), None),
    ],
)
def test_as_number(raw: object, number: float | None) -> None:
    assert as_number(raw) == number


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf, None, "0.5", [0.5, 0.5], {}, 1.01, -0.01])
def test_an_unusable_outcome_is_invalid_and_says_so(raw: object) -> None:
    record = as_record("clip", raw, (0.0, 1.0))
    assert record.status is Status.INVALID and record.value is None
    assert record.reason is not None and record.reason.startswith("clip: returned")


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf, 10**400])
def test_without_bounds_a_number_is_still_finite(raw: float) -> None:
    record = as_record("custom", raw, (-math.inf, math.inf))
    assert record.status is Status.INVALID and record.reason is not None and "bounds" not in record.reason


def test_rounding_past_a_bound_is_set_to_it() -> None:
    assert as_record("x", 1.0 + 1e-9, (-1.0, 1.0)).value == 1.0
    assert as_record("x", -1.0 - 1e-9, (-1.0, 1.0)).value == -1.0
    assert as_record("x", -1e30, (-math.inf, math.inf)).value == -1e30


@pytest.mark.parametrize("raw", [1e31, -1e39, 1e300])
def test_a_number_that_advantages_cannot_hold_costs_its_sample(raw: float) -> None:
    """In fp32 the second is infinite, and a group with it would have no mean."""
    record = as_record("custom", raw, (-math.inf, math.inf))
    assert record.status is Status.INVALID and "magnitude above 1e+30" in (record.reason or "")
    reward_N, valid_N = to_tensors([RewardRecord(0.1, Status.OK), RewardRecord(1e30, Status.OK), record])
    advantage_N, _ = group_advantage(reward_N, valid_N, ["g"] * 3)
    assert torch.isfinite(advantage_N).all() and valid_N.tolist() == [True, True, False]


@pytest.mark.parametrize("raw", [None, 0.5, "ab", b"ab", {1: 2, 3: 4}, [1.0], torch.zeros(2, 1), np.zeros(3)])
def test_as_rows_refuses_anything_but_one_per_sample(raw: object) -> None:
    with pytest.raises(WrongAnswerError):
        as_rows(raw, 2)


def test_as_rows() -> None:
    assert as_rows(torch.tensor([0.5, 1.0]), 2) == as_rows([0.5, 1.0], 2) == as_rows(np.array([0.5, 1.0]), 2)


def raised(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except Exception as error:
        return describe_error(error)
    raise AssertionError("nothing was raised")


def test_an_exception_names_the_line_of_the_users_code(tmp_path: Path) -> None:
    file = tmp_path / "my_reward.py"
    file.write_text(
        "import json\n\ndef score(text):\n    return json.loads(text)\n\ndef bad(row):\n    return row['x']\n"
    )
    module = runpy.run_path(str(file))
    assert raised(lambda: module["bad"]({})) == f"raised KeyError: 'x' ({file}, line 7)"
    # Raised in the standard library, on behalf of line 4.
    assert raised(lambda: module["score"]("{")).endswith(f"({file}, line 4)")


def test_an_exception_of_ours_alone_names_no_line() -> None:
    try:
        as_rows("text", 2)
    except WrongAnswerError as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        assert describe_error(error) == "raised WrongAnswerError: returned str 'text' for 2 samples"
