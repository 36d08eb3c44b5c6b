# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of a step go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Phases of verl's step that are model compute, by verl's timer names; those of the chain are measured where they run.
_MODEL_PHASES = ("old_log_prob", "ref", "update_actor")


def caption_seconds(request_metrics: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from the first caption request of a batch to the last answer: the longest request, since all are sent
    together."""
    return max((float(metrics.get("generate_sequences", 0.0)) for metrics in request_metrics), default=0.0)


def chain_timing(seconds: Mapping[str, float], pictures: int) -> dict[str, float]:
    """Seconds of captioning, and of the slowest rank in decoding and scoring; reconstructions per second of both."""
    metrics = {f"timing_s/{phase}": value for phase, value in seconds.items()}
    total = seconds["decode"] + seconds["score"]
    if total > 0:
        metrics["perf/reconstructions_per_s"] = pictures / total
    return metrics


def overhead_metrics(timing_raw: Mapping[str, float], chain_seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of a step spent outside captioning, decoding, scoring, log-probs and updates."""
    step = timing_raw.get("step", 0.0)
    if step <= 0:
        return {}
    model = sum(timing_raw.get(phase, 0.0) for phase in _MODEL_PHASES) + sum(chain_seconds.values())
    return {"perf/overhead_frac": max(0.0, 1.0 - model / step)}


#: Phase -> metric, in the order of a step.
_SHOWN = {
    "caption": "timing_s/caption",
    "decode": "timing_s/decode",
    "score": "timing_s/score",
    "log-probs": "timing_s/old_log_prob",
    "update": "timing_s/update_actor",
    "step": "timing_s/step",
}


def progress_line(metrics: Mapping[str, float]) -> str:
    """One line of a step: reward, caption length, samples without reward, and the seconds of each phase."""
    phases = ", ".join(f"{phase} {metrics[name]:.1f} s" for phase, name in _SHOWN.items() if name in metrics)
    return (
        f"reward {metrics.get('reward/score/mean', float('nan')):.3f}, "
        f"{metrics.get('caption/words/mean', 0.0):.1f} words, "
        f"{metrics.get('reward/invalid_frac', 0.0):.0%} without reward; {phases}"
    )
