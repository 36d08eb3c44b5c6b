# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the log says of speed, in every stage alike."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig

#: Phases of a step by the names of its timers, and the model that works in them.
PHASES: Mapping[str, tuple[str, ...]] = {
    "captioner": ("caption", "old_log_prob", "ref", "update_actor", "update_weights"),
    # Not the phases of drawing: they may overlap.
    "decoder": ("draw", "update_policy", "learn"),
}


def gpus(config: DictConfig) -> int:
    """GPUs, or ranks on a CPU, of a run: the trainer's, and those of decoders in a pool of their own."""
    trainer, decoder = config.trainer, config.uae.decoder
    own = decoder.n_gpus_per_node * decoder.nnodes if decoder.pool == "own" else 0
    return int(trainer.n_gpus_per_node * trainer.nnodes + own)


def speed_metrics(seconds: Mapping[str, float], pictures: int, devices: int) -> dict[str, float]:
    """Pictures per second and GPU, and the share of the step in which each model works.

    Args:
        seconds: by timer, with the whole step as ``step``.
        pictures: drawn, or learnt from, in the step.
        devices: of :func:`gpus`.
    """
    step = seconds.get("step", 0.0)
    if step <= 0:
        return {}
    found = {"perf/pictures_per_s_per_gpu": pictures / step / devices}
    for model, phases in PHASES.items():
        known = [seconds[phase] for phase in phases if phase in seconds]
        if known:
            found[f"perf/busy/{model}"] = sum(known) / step
    return found
