# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Turning whatever a term returned into records."""

from __future__ import annotations

import math
import numbers
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from verl_uae.reward.record import RewardRecord, Status

#: Rounding a bounded value may do past its bound, relative to the width of the bounds.
BOUND_TOLERANCE = 1e-6

#: Largest magnitude of a value: advantages are fp32, which ends at 3.4e38, and running statistics take squares.
LARGEST = 1e30

#: Folders of code that is not the user's: this package, the standard library and what is installed.
_NOT_THE_USERS = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class WrongAnswerError(Exception):
    """A term answered, but not with one outcome per sample."""


def describe(raw: object, limit: int = 60) -> str:
    """A short text for an unusable outcome, safe to put in a log."""
    if isinstance(raw, (Tensor, np.ndarray)):
        return f"{type(raw).__name__} of shape {tuple(raw.shape)}"
    text = repr(raw)
    return f"{type(raw).__name__} {text if len(text) <= limit else text[: limit - 3] + '...'}"


def describe_error(error: BaseException, limit: int = 200) -> str:
    """An exception as one line, with the place in the user's code it passed through, where it did."""
    text = " ".join(str(error).split())
    place = _users_line(error)
    return f"raised {type(error).__name__}: {text if len(text) <= limit else text[: limit - 3] + '...'}{place}"


def _users_line(error: BaseException) -> str:
    """The innermost file and line of a traceback that is neither ours nor installed."""
    places = [
        f" ({frame.filename}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_NOT_THE_USERS, "<"))
    ]
    if places or error.__cause__ is None:
        return places[-1] if places else ""
    return _users_line(error.__cause__)


def as_number(raw: object) -> float | None:
    """The float in a Python, NumPy or one-element tensor number (bool counts as 0 or 1), else None."""
    if isinstance(raw, (Tensor, np.ndarray, np.generic)):
        if math.prod(raw.shape) != 1:
            return None
        raw = raw.item()
    if not isinstance(raw, numbers.Real):
        return None
    try:
        return float(raw)
    except OverflowError:
        return math.inf


def as_record(label: str, raw: object, bounds: tuple[float, float], seconds: float = 0.0) -> RewardRecord:
    """One sample's outcome as a record: OK when it is a number inside ``bounds`` and :data:`LARGEST`, else INVALID.

    A value that is past a bound by rounding only is set to that bound.
    """
    if isinstance(raw, RewardRecord):
        if not raw.ok:
            return raw
        number, terms, seconds = raw.value, raw.terms, raw.seconds
    else:
        number, terms = as_number(raw), {}
    if number is None:
        return RewardRecord.failed(Status.INVALID, f"{label}: returned {describe(raw)}, not a number", seconds)
    if not math.isfinite(number):
        return RewardRecord.failed(Status.INVALID, f"{label}: returned {number}", seconds)
    if abs(number) > LARGEST:
        reason = f"{label}: returned {number:g}, of a magnitude above {LARGEST:g}"
        return RewardRecord.failed(Status.INVALID, reason, seconds)
    low, high = bounds
    slack = BOUND_TOLERANCE * (high - low) if math.isfinite(high - low) else 0.0
    if not low - slack <= number <= high + slack:
        reason = f"{label}: returned {number:g}, outside its bounds [{low:g}, {high:g}]"
        return RewardRecord.failed(Status.INVALID, reason, seconds)
    return RewardRecord(value=min(max(number, low), high), status=Status.OK, terms=terms, seconds=seconds)


def as_rows(raw: object, count: int) -> list[object]:
    """The outcomes of a batch, one per sample.

    Raises:
        WrongAnswerError: where ``raw`` is not a sequence of ``count`` outcomes.
    """
    if isinstance(raw, (Tensor, np.ndarray)):
        if tuple(raw.shape) != (count,):
            raise WrongAnswerError(f"returned {describe(raw)} for {count} samples")
        return list(raw.tolist())
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise WrongAnswerError(f"returned {describe(raw)} for {count} samples")
    if len(raw) != count:
        raise WrongAnswerError(f"returned {len(raw)} outcomes for {count} samples")
    return list(raw)
