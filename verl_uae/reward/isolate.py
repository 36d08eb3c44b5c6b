# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Scoring a batch so that one bad sample costs one sample, and changes no other sample's bits.

Floating-point kernels choose their summation order by shape: a network scores a picture in the last bits differently
in a batch of 64 than alone. Leaving a bad sample out, or scoring the rest one by one, would therefore move the clean
ones. So a term always sees the same shape, ``chunk_size`` samples, each at its own place (position modulo
``chunk_size``). A bad sample's place, and the places after the last sample, are taken by a copy of a clean sample
of the chunk. Which samples are bad is found by scoring each alone; those probes are diagnosis only, their values are
dropped.

Where memory runs out, chunks get smaller for the rest of the run, which is logged once.

Not covered: a device whose kernels let one row's content change another row's rounding (none known), and a term that
fails on a batch although every sample passes alone: its samples then get their single-sample values, with a warning. A
:class:`~verl_uae.errors.RewardError` is no sample's fault and is passed on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from verl_uae.devices import FittingBatch, is_out_of_memory
from verl_uae.errors import RewardError
from verl_uae.reward.deadline import Call, doing
from verl_uae.reward.record import RewardBatch, RewardRecord, as_record, as_rows, describe_error
from verl_uae.reward.term import RewardTerm

logger = logging.getLogger(__name__)

#: Most pixels of the sources in one call of a term: 16 pictures of 512 x 512. What a term works with is bounded by
#: its bytes per pixel (docs/rewards.md) times this, whatever the pictures' size; see :func:`samples_per_call`.
CALL_PIXELS = 2**22

#: Filled in place, sample by sample, so that what is done when a deadline strikes is not lost.
Slots = list[RewardRecord | None]


def samples_per_call(chunk_size: int, height: int, width: int) -> int:
    """``chunk_size``, halved until that many pictures have no more than :data:`CALL_PIXELS`, or one is left.

    Depends on nothing but the size, so a picture is scored in the same shape in every run. Halves, so that batches of
    whole chunks stay such.
    """
    while chunk_size > 1 and chunk_size * height * width > CALL_PIXELS:
        chunk_size //= 2
    return chunk_size


def score_isolated(
    term: RewardTerm, label: str, batch: RewardBatch, active: Sequence[int], chunk: FittingBatch, slots: Slots
) -> None:
    """Score the ``active`` samples of ``batch``, gradients off.

    A term that looks at several samples at once, or isolates them itself, is called once, without a retry; another one
    for ``chunk`` samples at a time, the last call filled up to it. Written are the active positions of ``slots``, which
    has an entry per sample of ``batch``.
    """

    def ask(places: Sequence[int], *, divisible: bool = False) -> Call[list[RewardRecord]]:
        """One call, for a record per place; lack of memory is raised where fewer samples may pass."""
        start = time.monotonic()
        try:
            rows = as_rows(term.score(batch.take(places)), len(places))
        except RewardError:
            raise
        # A fault boundary: what a term raises over a sample is data, whatever it is.
        except Exception as error:
            if divisible and is_out_of_memory(error):
                # From here and not later: an error that is kept holds the tensors of the failed call.
                raise
            return Call(error=error, seconds=time.monotonic() - start)
        seconds = time.monotonic() - start
        return Call([as_record(label, row, term.bounds, seconds / len(set(places))) for row in rows], seconds=seconds)

    def in_place(indices: Sequence[int], first: int) -> BaseException | None:
        """``indices`` at their places in a chunk, a copy of the first at all others. The error, if there is one."""
        wanted = set(indices)
        places = [place if place in wanted else indices[0] for place in range(first, first + chunk.size)]
        answer = ask(places, divisible=chunk.size > 1)
        if answer.value is not None:
            for index in indices:
                slots[index] = answer.value[index - first]
        return answer.error

    def score_chunk(rows: slice) -> None:
        """Isolate the samples that make the term fail; lack of memory for several samples is raised."""
        chosen = [index for index in active if rows.start <= index < rows.stop]
        together = in_place(chosen, rows.start) if chosen else None
        if together is None:
            return
        alone: dict[int, RewardRecord] = {}
        for index in chosen:
            answer = ask([index])
            if answer.value is None:
                slots[index] = answer.failure(label)
            else:
                alone[index] = answer.value[0]
        again = in_place(list(alone), rows.start) if alone else None
        if again is None:
            return
        logger.warning(
            "reward term %r fails on %d samples together (%s; at first %s) though each passes alone; using the "
            "values of the samples alone, which may differ in the last bits",
            *(label, len(alone), describe_error(again), describe_error(together)),
        )
        for index, record in alone.items():
            slots[index] = record

    # The mode is per thread, and so is the note of what the process is doing.
    with torch.no_grad(), doing(f"computing reward term {label!r} of {len(active)} samples"):
        if term.pointwise and not term.guarded:
            chunk.map(len(batch), score_chunk, filled=True)
            return
        answer = ask(active)
        fill_failed(slots, active, answer.failure(label))
        for index, record in zip(active, answer.value or (), strict=False):
            slots[index] = record


def fill_failed(slots: Slots, indices: Sequence[int], record: RewardRecord | None) -> None:
    """Give ``record`` to every named sample that has none yet."""
    for index in indices:
        if slots[index] is None:
            slots[index] = record
