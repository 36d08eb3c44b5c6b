# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.stages.g4u.trainer import caption_seconds, chain_timing, overhead_metrics, progress_line


def test_caption_time_is_that_of_the_longest_request() -> None:
    assert caption_seconds([{"generate_sequences": 1.0}, {"generate_sequences": 3.5}, {}]) == 3.5
    assert caption_seconds([]) == 0.0


def test_chain_timing() -> None:
    seconds = {"caption": 1.0, "decode": 1.5, "score": 0.5, "draw": 1.6}
    metrics = chain_timing(seconds, 64)
    assert {name: metrics[f"timing_s/{name}"] for name in seconds} == seconds
    assert metrics["perf/reconstructions_per_s"] == pytest.approx(40.0), "what overlaps counts once"
    streamed = {"caption": 1.0, "decode": 0.0, "score": 0.0, "draw": 0.0}
    assert "perf/reconstructions_per_s" not in chain_timing(streamed, 64)


def test_overhead_is_what_no_model_computes() -> None:
    raw = {"step": 10.0, "old_log_prob": 1.0, "ref": 1.0, "update_actor": 2.0, "gen": 99.0}
    chain = {"caption": 1.0, "decode": 1.5, "score": 1.5, "draw": 2.0}
    assert overhead_metrics(raw, chain)["perf/overhead_frac"] == pytest.approx(0.3)
    assert overhead_metrics({**raw, "step": 1.0}, chain)["perf/overhead_frac"] == 0.0
    assert overhead_metrics({}, chain) == {}


def test_the_progress_line_names_every_phase_that_was_timed() -> None:
    metrics = {
        "reward/score/mean": 0.8834,
        "caption/words/mean": 10.45,
        "reward/invalid_frac": 0.25,
        "timing_s/caption": 0.32,
        "timing_s/decode": 0.41,
        "timing_s/step": 2.88,
    }
    expected = "reward 0.883, 10.4 words, 25% without reward; caption 0.3 s, decode 0.4 s, step 2.9 s"
    assert progress_line(metrics) == expected
