# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a reward is: a record, never a bare number.

A score that could not be computed is *missing*. Written as 0.0 it would teach the policy that whatever made the
scorer fail is bad, so a record carries a status and holds a value only when the status is OK.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verl_uae.errors import RewardError


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


def to_tensors(records: Sequence[RewardRecord], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Records as what :func:`verl_uae.flow.advantage.group_advantage` takes.

    Returns:
        reward_N: fp32, NaN where there is no value, so that forgetting the mask shows.
        valid_N: bool.
    """
    values = [math.nan if record.value is None else record.value for record in records]
    valid_N = torch.tensor([record.ok for record in records], dtype=torch.bool, device=device)
    return torch.tensor(values, dtype=torch.float32, device=device), valid_N


def require_enough_valid(records: Sequence[RewardRecord], max_failed: float = 0.5) -> None:
    """Stop a run whose rewards mostly fail: by then it is the scorer that is broken, not the samples.

    Args:
        records: all records of one training step.
        max_failed: largest share of failed records that is tolerated, in [0, 1].

    Raises:
        RewardError: above that share, with the commonest reasons.
    """
    failed = [record for record in records if not record.ok]
    if len(failed) <= max_failed * len(records):
        return
    common = Counter(f"{record.status}: {record.reason}" for record in failed).most_common(3)
    reasons = "; ".join(f"{count} x {text}" for text, count in common)
    raise RewardError("all", f"{len(failed)} of {len(records)} samples have no reward ({reasons})")
