# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from verl_uae.bench.discriminate import speed
from verl_uae.bench.discriminate.terms import build_scorers, term_specs


def test_pairs_come_round_without_repeating_a_source() -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [speed.pairs_of(images, repetition, 3) for repetition in range(3)]
    sources = [source for batch in batches for source in batch.source_B3HW]
    assert all(torch.equal(source, images[index % 5]) for index, source in enumerate(sources))
    assert all(not torch.equal(batch.source_B3HW, batch.reconstruction_B3HW) for batch in batches)


def test_terms_take_turns_and_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by one that counts its readings: every call takes one second."""
    ticks = itertools.count()
    monkeypatch.setattr(speed.time, "process_time", lambda: float(next(ticks)))
    scorers = build_scorers(term_specs(["{name: pixel}", "{name: psnr}", "{name: ssim}"], defaults=False), chunk_size=2)
    calls: list[str] = []
    for label, scorer in scorers.items():
        monkeypatch.setattr(
            scorer, "score", lambda batch, label=label, real=scorer.score: calls.append(label) or real(batch)
        )
    done: list[int] = []
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = speed.milliseconds_per_pair(
        scorers, images, batch_size=2, repetitions=4, on_progress=lambda what, n, count: done.append(n)
    )
    assert found == {
        label: {"median": 500.0, "quartiles": [500.0, 500.0], "repetitions": 4} for label in ("pixel", "psnr", "ssim")
    }
    assert done == [1, 2, 3, 4, 5, 6]
    rounds = [calls[start : start + 3] for start in range(0, 18, 3)]
    assert all(sorted(turn) == ["pixel", "psnr", "ssim"] for turn in rounds)
    assert {turn[0] for turn in rounds} == {"pixel", "psnr", "ssim"}
