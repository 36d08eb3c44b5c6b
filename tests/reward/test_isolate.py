# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Bit-equality under faults, on a real network whose rounding depends on the batch size."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from verl_uae.devices import FittingBatch
from verl_uae.errors import RewardError
from verl_uae.reward import RewardBatch, RewardScorer, RewardTerm, Status
from verl_uae.reward.isolate import samples_per_call, score_isolated
from verl_uae.reward.terms.vision import ClipSimilarity

CHUNK = 8


class Faulty(RewardTerm):
    """A real term that fails on samples whose row says so, as a term looking at the content would."""

    bounds = (-1.0, 1.0)

    def __init__(self, term: RewardTerm) -> None:
        self.term = term
        self.batch_sizes: list[int] = []

    def score(self, batch):
        self.batch_sizes.append(len(batch))
        faults = [row.get("fault") for row in batch.rows]
        if "raise" in faults:
            raise ValueError("cannot look at this")
        values = self.term.score(batch).tolist()
        if "drop" in faults:
            return [value for value, fault in zip(values, faults, strict=True) if fault != "drop"]
        return [float("nan") if fault == "nan" else value for value, fault in zip(values, faults, strict=True)]


@pytest.fixture
def term(tiny_clip) -> Faulty:
    return Faulty(ClipSimilarity(str(tiny_clip)))


def _run(term, batch, active=None, chunk=CHUNK):
    slots = [None] * len(batch)
    active = range(len(batch)) if active is None else active
    score_isolated(term, "clip", batch, active, FittingBatch(chunk, "pictures"), slots)
    return slots


@pytest.mark.parametrize(
    "faults", [{3: "raise"}, {0: "raise", 7: "drop"}, {9: "nan"}, dict.fromkeys(range(1, 20, 2), "raise")]
)
def test_a_fault_costs_its_sample_and_no_other_bit(make_batch, term, faults) -> None:
    clean = _run(term, make_batch(20))
    batch = make_batch(20)
    for index, fault in faults.items():
        batch.rows[index]["fault"] = fault
    records = _run(term, batch)
    for index, record in enumerate(records):
        if index in faults:
            assert record.status is (Status.ERROR if faults[index] == "raise" else Status.INVALID)
            assert record.reason.startswith("clip: r")
        else:
            assert record.value == clean[index].value


def test_a_chunk_of_only_bad_samples(make_batch, term) -> None:
    batch = make_batch(CHUNK + 2)
    for index in range(CHUNK):
        batch.rows[index]["fault"] = "raise"
    records = _run(term, batch)
    assert [record.ok for record in records] == [False] * CHUNK + [True] * 2


def test_values_do_not_depend_on_how_many_samples_there_are(make_batch, term) -> None:
    batch = make_batch(21)
    whole = [record.value for record in _run(term, batch)]
    assert [_run(term, batch.take([index]))[0].value for index in range(21)] == whole
    assert [record.value for record in _run(term, batch.take(range(20, -1, -1)))] == whole[::-1]
    skipped = _run(term, batch, active=[1, 20])
    assert [skipped[1].value, skipped[20].value] == [whole[1], whole[20]] and skipped.count(None) == 19
    assert set(term.batch_sizes) == {CHUNK}


def test_a_term_that_only_fails_together_falls_back_with_a_warning(make_batch, caplog) -> None:
    class OutOfMemory(RewardTerm):
        bounds = (0.0, 1.0)

        def score(self, batch):
            if len(batch) > 1:
                raise MemoryError("too much")
            return [0.5]

    with caplog.at_level(logging.WARNING):
        records = _run(OutOfMemory(), make_batch(3))
    assert [record.value for record in records] == [0.5] * 3
    assert "MemoryError" in caplog.text


@pytest.mark.parametrize("each_alone", [True, False])
def test_a_reward_error_is_no_samples_fault(make_batch, each_alone: bool) -> None:
    class Broken(RewardTerm):
        bounds = (0.0, 1.0)
        pointwise = each_alone

        def score(self, batch):
            raise RewardError("broken", "server is gone")

    with pytest.raises(RewardError, match="server is gone"):
        _run(Broken(), make_batch(2))


def test_a_term_that_compares_samples_sees_the_active_ones_only(make_batch) -> None:
    class Rank(RewardTerm):
        bounds = (0.0, 1.0)
        pointwise = False

        def score(self, batch):
            order = batch.reconstruction_B3HW.mean(dim=(1, 2, 3)).argsort().argsort()
            return order / max(1, len(batch) - 1)

    slots = _run(Rank(), make_batch(5), [0, 2, 4])
    assert sorted(slots[index].value for index in (0, 2, 4)) == [0.0, 0.5, 1.0]
    assert slots[1] is slots[3] is None


def test_memory_that_runs_out_makes_chunks_smaller_for_good(make_batch, caplog) -> None:
    class Large(RewardTerm):
        bounds = (0.0, 1.0)
        tried: ClassVar[list[int]] = []

        def score(self, batch):
            self.tried.append(len(batch))
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return batch.reconstruction_B3HW.mean(dim=(1, 2, 3))

    batch, chunk = make_batch(5), FittingBatch(CHUNK, "pictures of reward term 'large'")
    for _ in range(2):
        slots: list[Any] = [None] * 5
        score_isolated(Large(), "large", batch, range(5), chunk, slots)
        values = [record.value for record in slots]
        assert values == pytest.approx(batch.reconstruction_B3HW.mean(dim=(1, 2, 3)).tolist(), rel=1e-6)
    assert Large.tried == [8, 4, 2, 2, 2, 2, 2, 2]
    assert [message for message in caplog.messages if "out of memory" in message] == [
        "out of memory with up to 8 pictures of reward term 'large' at a time; 2 fit and are used from here on"
    ]


def test_a_call_that_memory_did_not_hold_is_let_go_before_the_next(make_batch) -> None:
    class Work:
        """Stands for the activations of a call."""

    calls: list[weakref.ref[Work]] = []
    held: list[int] = []

    class Large(RewardTerm):
        bounds = (0.0, 1.0)

        def score(self, batch):
            held.append(sum(work() is not None for work in calls))
            work = Work()
            calls.append(weakref.ref(work))
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return batch.reconstruction_B3HW.mean(dim=(1, 2, 3))

    gc.disable()
    try:
        score_isolated(Large(), "large", make_batch(5), range(5), FittingBatch(CHUNK, "pictures"), [None] * 5)
    finally:
        gc.enable()
    assert held == [0] * 5


@pytest.mark.parametrize(
    ("chunk", "side", "expected"),
    [(16, 32, 16), (16, 512, 16), (16, 513, 8), (16, 1024, 4), (12, 1024, 3), (16, 4096, 1), (1, 8192, 1)],
)
def test_a_call_has_fewer_of_large_pictures(chunk: int, side: int, expected: int) -> None:
    assert samples_per_call(chunk, side, side) == expected


class CallSizes(RewardTerm):
    bounds = (0.0, 1.0)

    def __init__(self, chunk_size: int | None = None) -> None:
        self.chunk_size = chunk_size
        self.sizes: list[int] = []

    def score(self, batch: RewardBatch) -> torch.Tensor:
        self.sizes.append(len(batch))
        return batch.source_B3HW.mean(dim=(1, 2, 3))


def test_the_scorer_bounds_the_pixels_of_a_call_unless_the_term_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_uae.reward.isolate.CALL_PIXELS", 4 * 16 * 16)
    scorer = RewardScorer([("pixel", 1.0, {})])
    pictures = torch.rand(6, 3, 16, 16)
    for own, sizes in ((None, [4, 4]), (3, [3, 3])):
        term = CallSizes(own)
        scorer._summed = [replace(scorer._summed[0], term=term, chunk=FittingBatch(own or 16, "pictures"))]
        records = scorer.score(RewardBatch(pictures, pictures))
        assert term.sizes == sizes
        assert [record.value for record in records] == pytest.approx(pictures.mean(dim=(1, 2, 3)).tolist())
