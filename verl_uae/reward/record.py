# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a term is given and what becomes of it: a batch of samples, and a record for each, never a bare number.

A score that could not be computed is *missing*. Written as 0.0 it would teach the policy that whatever made the
scorer fail is bad, so a record carries a status and holds a value only when the status is OK.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import enum
import math
import numbers
import sysconfig
import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Status(str, enum.Enum):
    """How the scoring of one sample ended."""

    OK = "ok"
    """A finite value inside the declared bounds."""
    INVALID = "invalid"
    """Something came back, but not a usable number, or a picture was not usable."""
    TIMEOUT = "timeout"
    """No answer in time."""
    ERROR = "error"
    """An exception."""

    # Python 3.10 has no StrEnum: without these, f-strings and str() differ between versions.
    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, format_spec: str) -> str:
        return format(str(self.value), format_spec)


@dataclass(frozen=True, slots=True)
class RewardRecord:
    """The reward of one sample.

    Raises:
        ValueError: where value and status contradict each other, or a number is not finite.
    """

    value: float | None
    """The reward; None unless ``status`` is OK. Never NaN."""
    status: Status
    terms: Mapping[str, float] = field(default_factory=dict)
    """Unweighted parts by label, held-out ones included; only those that were computed."""
    seconds: float = 0.0
    """Time spent on this sample: its own where terms score one by one, else its share of the batch."""
    reason: str | None = None
    """Why there is no value, naming the term; None when OK."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))
        object.__setattr__(self, "terms", {label: float(value) for label, value in self.terms.items()})
        if self.status is Status.OK:
            if self.value is None or not math.isfinite(self.value):
                raise ValueError(f"a record with status ok needs a finite value, got {self.value}")
            object.__setattr__(self, "value", float(self.value))
        elif self.value is not None:
            raise ValueError(f"a record with status {self.status} has no value, got {self.value}")
        elif not self.reason:
            raise ValueError(f"a record with status {self.status} needs a reason")
        unusable = [label for label, value in self.terms.items() if not math.isfinite(value)]
        if unusable:
            raise ValueError(f"terms {unusable} are not finite")
        if not (math.isfinite(self.seconds) and self.seconds >= 0.0):
            raise ValueError(f"seconds must be finite and not negative, got {self.seconds}")

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.status is Status.OK

    @classmethod
    def failed(cls, status: Status, reason: str, seconds: float = 0.0) -> RewardRecord:
        """A record without a value."""
        return cls(value=None, status=status, seconds=seconds, reason=reason)


def mean_record(records: Sequence[RewardRecord]) -> RewardRecord:
    """Mean over the records that have a value; the first failure if none has."""
    scored = [record for record in records if record.ok]
    seconds = sum(record.seconds for record in records)
    if not scored:
        first = records[0]
        return RewardRecord.failed(first.status, first.reason or str(first.status), seconds)
    names = set.intersection(*(set(record.terms) for record in scored))
    terms = {name: sum(record.terms[name] for record in scored) / len(scored) for name in sorted(names)}
    value = sum(record.value or 0.0 for record in scored) / len(scored)
    return RewardRecord(value, Status.OK, terms, seconds)


def to_tensors(records: Sequence[RewardRecord], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Records as what :func:`verl_uae.flow.advantage.group_advantage` takes.

    Returns:
        reward_N: fp32, NaN where there is no value, so that forgetting the mask shows.
        valid_N: bool.
    """
    values = [math.nan if record.value is None else record.value for record in records]
    valid_N = torch.tensor([record.ok for record in records], dtype=torch.bool, device=device)
    return torch.tensor(values, dtype=torch.float32, device=device), valid_N


#: Pixels may leave [0, 1] by this much: rounding of a VAE's output range, not a wrong range.
RANGE_TOLERANCE = 1e-3


@dataclass(eq=False, slots=True)
class Scoring:
    """One batch on its way through a scorer."""

    over: bool = False
    """Whether the scorer has answered. Terms that were too late may still run."""
    shared: dict[Hashable, Any] = field(default_factory=dict)
    """What the terms before have computed of it (:mod:`verl_uae.reward.encodings`)."""

    def keep(self, key: Hashable, value: Any) -> None:
        """Add to what is shared; nothing is, once the scorer has answered."""
        if not self.over:
            self.shared[key] = value

    def finish(self) -> None:
        """The scorer has answered."""
        self.over, self.shared = True, {}


@dataclass(frozen=True, slots=True)
class Origin:
    """Which samples of which batch these are. Equal origins are equal samples at equal places."""

    batch: Scoring
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Pictures, their reconstructions and the captions between them, all on one device.

    Raises:
        ValueError: where shapes, types or lengths do not belong together.
    """

    source_B3HW: Tensor
    """Source pictures in [0, 1], any float type; kept as fp32."""
    reconstruction_B3HW: Tensor
    """Reconstructions in [0, 1], of the same shape. Rows named in ``failed`` may hold anything."""
    captions: Sequence[str] | None = None
    """The caption each reconstruction was drawn from."""
    rows: Sequence[Mapping[str, Any]] | None = None
    """The data row of each sample: ``data_source``, ``ground_truth``, ``extra_info``."""
    groups: Sequence[str] | None = None
    """The group of each sample: those of one source picture that are compared with each other."""
    failed: Mapping[int, RewardRecord] = field(default_factory=dict)
    """Samples without a picture, by position: their record is passed through untouched."""
    origin: Origin | None = None
    """Set by the scorer, so that terms can share what they compute."""

    def __post_init__(self) -> None:
        source, reconstruction = self.source_B3HW, self.reconstruction_B3HW
        for name, images in (("source", source), ("reconstruction", reconstruction)):
            if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[1:] or not images.is_floating_point():
                raise ValueError(f"{name} must be float (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        if source.shape != reconstruction.shape or source.device != reconstruction.device:
            raise ValueError(
                f"source {tuple(source.shape)} on {source.device} and reconstruction "
                f"{tuple(reconstruction.shape)} on {reconstruction.device} differ"
            )
        for name, values in (("captions", self.captions), ("rows", self.rows), ("groups", self.groups)):
            if values is not None and len(values) != len(self):
                raise ValueError(f"{len(values)} {name} for {len(self)} pictures")
        for index, record in self.failed.items():
            if not 0 <= index < len(self) or record.ok:
                raise ValueError(f"failed[{index}] must be a record without a value of one of {len(self)} samples")
        object.__setattr__(self, "source_B3HW", source.to(torch.float32))
        object.__setattr__(self, "reconstruction_B3HW", reconstruction.to(torch.float32))

    def __len__(self) -> int:
        return self.source_B3HW.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the pictures are."""
        return self.source_B3HW.device

    def take(self, indices: Sequence[int]) -> RewardBatch:
        """The samples at ``indices``, in that order, repeats allowed; without ``failed``."""
        index = torch.as_tensor(list(indices), dtype=torch.long, device=self.device)
        given = {"captions": self.captions, "rows": self.rows, "groups": self.groups}
        taken: Any = {name: None if values is None else [values[i] for i in indices] for name, values in given.items()}
        origin = self.origin and Origin(self.origin.batch, tuple(self.origin.positions[i] for i in indices))
        return RewardBatch(self.source_B3HW[index], self.reconstruction_B3HW[index], **taken, origin=origin)

    def unusable(self) -> dict[int, str]:
        """Samples with a NaN, infinite or out-of-range pixel, with the reason."""
        reasons: dict[int, str] = {}
        for name, images in (("reconstruction", self.reconstruction_B3HW), ("source picture", self.source_B3HW)):
            low_B, high_B = images.amin(dim=(1, 2, 3)).tolist(), images.amax(dim=(1, 2, 3)).tolist()
            for index, (low, high) in enumerate(zip(low_B, high_B, strict=True)):
                # Written so that a NaN, which amin and amax pass on, fails the comparison.
                if not (low >= -RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE):
                    reasons[index] = f"{name}: pixels from {low:g} to {high:g}, expected [0, 1]"
        return reasons


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
    low, high = bounds
    slack = BOUND_TOLERANCE * (high - low) if math.isfinite(high - low) else 0.0
    problem = None
    if number is None:
        problem = f"returned {describe(raw)}, not a number"
    elif not math.isfinite(number):
        problem = f"returned {number}"
    elif abs(number) > LARGEST:
        problem = f"returned {number:g}, of a magnitude above {LARGEST:g}"
    elif not low - slack <= number <= high + slack:
        problem = f"returned {number:g}, outside its bounds [{low:g}, {high:g}]"
    if number is None or problem is not None:
        return RewardRecord.failed(Status.INVALID, f"{label}: {problem}", seconds)
    return RewardRecord(min(max(number, low), high), Status.OK, terms, seconds)


def as_rows(raw: object, count: int) -> list[object]:
    """The outcomes of a batch, one per sample.

    Raises:
        WrongAnswerError: where ``raw`` is not a sequence of ``count`` outcomes.
    """
    if isinstance(raw, (Tensor, np.ndarray)) and tuple(raw.shape) == (count,):
        return list(raw.tolist())
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise WrongAnswerError(f"returned {describe(raw)} for {count} samples")
    if len(raw) != count:
        raise WrongAnswerError(f"returned {len(raw)} outcomes for {count} samples")
    return list(raw)
