# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of a step go."""

from __future__ import annotations

from collections.abc import Mapping

#: Phases of verl's step that are model compute, by verl's timer names; the chain's own come from its ranks.
_MODEL_PHASES = ("gen", "old_log_prob", "ref", "update_actor")


def chain_timing(seconds: Mapping[str, float], pictures: int) -> dict[str, float]:
    """Seconds of the slowest rank in decoding and scoring, and reconstructions per second of both."""
    total = seconds["decode"] + seconds["score"]
    metrics = {"timing_s/decode": seconds["decode"], "timing_s/score": seconds["score"]}
    if total > 0:
        metrics["perf/reconstructions_per_s"] = pictures / total
    return metrics


def overhead_metrics(timing_raw: Mapping[str, float], chain_seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of a step spent outside captioning, decoding, scoring, log-probs and updates."""
    step = timing_raw.get("step", 0.0)
    if step <= 0:
        return {}
    model = sum(timing_raw.get(phase, 0.0) for phase in _MODEL_PHASES) + sum(chain_seconds.values())
    return {"timing_s/caption": timing_raw.get("gen", 0.0), "perf/overhead_frac": max(0.0, 1.0 - model / step)}
