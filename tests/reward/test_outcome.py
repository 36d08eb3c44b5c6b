# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_uae.flow.advantage import group_advantage
from verl_uae.reward import RewardRecord, Status, to_tensors
from verl_uae.reward.outcome import WrongAnswerError, as_number, as_record, as_rows, describe_error


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
