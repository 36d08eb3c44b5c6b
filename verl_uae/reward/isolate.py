# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Scoring a batch so that one bad sample costs one sample, and changes no other sample's bits.

Floating-point kernels choose their summation order by shape: a network scores a picture in the last bits differently
in a batch of 64 than alone. Leaving a bad sample out, or scoring the rest one by one, would therefore move the clean
ones. So a term always sees the same shape, ``chunk_size`` samples, each at its own place (position modulo
``chunk_size``). A bad sample's place, and the places after the last sample, are taken by a copy of a clean sample
of the chunk. Which samples are bad is found by scoring each alone; those probes are diagnosis only, their values are
dropped.

Not covered: a device whose kernels let one row's content change another row's rounding (none known), and a term that
fails on a batch although every sample passes alone (out of memory): its samples then get their single-sample
values, with a warning. A :class:`~verl_uae.errors.RewardError` is no sample's fault and is passed on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from verl_uae.errors import RewardError
from verl_uae.reward.outcome import WrongAnswer, as_record, as_rows, describe_error
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.term import RewardTerm

logger = logging.getLogger(__name__)

#: Filled in place, sample by sample, so that what is done when a deadline strikes is not lost.
Slots = list[RewardRecord | None]


def score_chunked(
    term: RewardTerm, label: str, batch: RewardBatch, active: Sequence[int], chunk_size: int, slots: Slots
) -> None:
    """Score the ``active`` samples of ``batch`` with a pointwise term.

    Args:
        term: the term; its ``pointwise`` is True.
        label: its name in reasons.
        batch: all samples, usable or not.
        active: positions to score.
        chunk_size: samples per call of the term; the last call is filled up to it.
        slots: one entry per sample of ``batch``; written at the active positions.
    """
    wanted = set(active)
    for start in range(0, len(batch), chunk_size):
        chunk = [index for index in range(start, min(start + chunk_size, len(batch))) if index in wanted]
        if chunk:
            _Chunk(term, label, batch, start, chunk_size).score(chunk, slots)


def score_whole(term: RewardTerm, label: str, batch: RewardBatch, active: Sequence[int], slots: Slots) -> None:
    """Score with a term that looks at several samples at once, or isolates them itself: one call, no retry."""
    start = time.monotonic()
    try:
        rows = as_rows(term.score(batch.take(active)), len(active))
    except RewardError:
        raise
    except Exception as error:  # noqa: BLE001  a fault boundary: a term's failure is data
        fill_failed(slots, active, _failure(label, error))
        return
    share = (time.monotonic() - start) / len(active)
    for index, raw in zip(active, rows, strict=True):
        slots[index] = as_record(label, raw, term.bounds, share)


def fill_failed(slots: Slots, indices: Sequence[int], record: RewardRecord) -> None:
    """Give ``record`` to every named sample that has none yet."""
    for index in indices:
        if slots[index] is None:
            slots[index] = record


def _failure(label: str, error: BaseException, seconds: float = 0.0) -> RewardRecord:
    """ERROR for an exception, INVALID for an answer of the wrong shape."""
    if isinstance(error, WrongAnswer):
        return RewardRecord.failed(Status.INVALID, f"{label}: {error}", seconds)
    return RewardRecord.failed(Status.ERROR, f"{label}: {describe_error(error)}", seconds)


class _Chunk:
    """One fixed-shape slice of the batch: positions ``start`` to ``start + size - 1``."""

    def __init__(self, term: RewardTerm, label: str, batch: RewardBatch, start: int, size: int) -> None:
        self.term = term
        self.label = label
        self.batch = batch
        self.start = start
        self.size = size

    def score(self, indices: Sequence[int], slots: Slots) -> None:
        """Score the samples at ``indices`` (positions in the batch), isolating those that make the term fail."""
        try:
            self._score_in_place(indices, slots)
            return
        except RewardError:
            raise
        except Exception as error:  # noqa: BLE001  a fault boundary: which sample it was is found below
            together = error
        alone: dict[int, RewardRecord] = {}
        for index in indices:
            record, failed = self._score_alone(index)
            if failed:
                slots[index] = record
            else:
                alone[index] = record
        if alone:
            self._score_clean(alone, slots, together)

    def _score_clean(self, alone: Mapping[int, RewardRecord], slots: Slots, together: Exception) -> None:
        try:
            self._score_in_place(list(alone), slots)
        except Exception as error:  # noqa: BLE001  a fault boundary: the values of the samples alone are at hand
            logger.warning(
                "reward term %r fails on %d samples together (%s; at first %s) though each passes alone; using the "
                "values of the samples alone, which may differ in the last bits",
                *(self.label, len(alone), describe_error(error), describe_error(together)),
            )
            for index, record in alone.items():
                slots[index] = record

    def _score_in_place(self, indices: Sequence[int], slots: Slots) -> None:
        """One call of fixed shape: ``indices`` at their own places, a copy of the first of them at all others."""
        start = time.monotonic()
        wanted = set(indices)
        places = [place if place in wanted else indices[0] for place in range(self.start, self.start + self.size)]
        rows = as_rows(self.term.score(self.batch.take(places)), self.size)
        share = (time.monotonic() - start) / len(indices)
        for index in indices:
            slots[index] = as_record(self.label, rows[index - self.start], self.term.bounds, share)

    def _score_alone(self, index: int) -> tuple[RewardRecord, bool]:
        """The sample scored by itself, and whether the term failed on it (rather than gave a bad number)."""
        start = time.monotonic()
        try:
            (raw,) = as_rows(self.term.score(self.batch.take([index])), 1)
        except Exception as error:  # noqa: BLE001  a fault boundary: this is the sample that failed
            return _failure(self.label, error, time.monotonic() - start), True
        return as_record(self.label, raw, self.term.bounds, time.monotonic() - start), False
