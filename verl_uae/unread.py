# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which keys under ``uae.`` a stage does not read, so that setting one is noticed.

The schema is one for all stages, and verl's typed configuration would take any of its keys in silence.
"""

from __future__ import annotations

from collections.abc import Iterable

_WORKERS = tuple(
    f"uae.decoder.{name}" for name in ("dtype", "n_gpus_per_node", "nnodes", "max_wait_ms", "timeout_s", "max_restarts")
)
_CAPTIONS = tuple(f"uae.policy.captions.{name}" for name in ("source", "do_sample", "temperature"))
_WRITTEN = tuple(f"uae.policy.captions.{name}" for name in ("dtype", "batch_size", "cache_size"))
_SAMPLING = tuple(
    f"uae.policy.{name}"
    for name in (
        "num_steps",
        "table",
        "kernel",
        "noise_level",
        "reduction",
        "window",
        "samples_per_caption",
        "share_noise",
        "updates_per_rollout",
        "sampler",
        "objective",
        "reference_kl",
        "advantage",
    )
)
_GROUPS = ("uae.reward.min_std", "uae.reward.advantage_std")
_SUPERVISED = (*_WORKERS, *_CAPTIONS, *_WRITTEN, *_SAMPLING, *_GROUPS, "uae.reward.tripwire_window", "uae.rollout")
_LOSS = tuple(
    f"uae.pretrain.{name}" for name in ("density", "condition_dropout", "null_caption", "shift", "validation_levels")
)
_TRAINING = tuple(
    f"uae.policy.{name}"
    for name in (
        "micro_batch_size",
        "train_projector",
        "gradient_checkpointing",
        "lora",
        "ema",
        "fsdp_config",
        "optim",
        "save_contents",
    )
)

#: Stage -> keys and sections that nothing in it reads. ``uae.policy.guidance`` is in none: ``uae.decoder.guidance``
#: follows it in the scenes.
UNREAD: dict[str, tuple[str, ...]] = {
    "g4u": (
        *_SAMPLING,
        *_CAPTIONS,
        *_WRITTEN,
        *_TRAINING,
        "uae.checkpoint.export",
        "uae.policy.captions.condition_cache_size",
        "uae.unified",
        "uae.pretrain",
        "uae.cold_start",
    ),
    "u4g": (*_WORKERS, *_GROUPS, "uae.rollout", "uae.unified", "uae.pretrain", "uae.cold_start"),
    "unified": (*_WRITTEN, "uae.pretrain", "uae.cold_start"),
    "pretrain": (*_SUPERVISED, "uae.unified", "uae.cold_start"),
    "cold_start": (*_SUPERVISED, *_LOSS, "uae.unified"),
}


def is_unread(stage: str, key: str) -> bool:
    """Whether nothing in the stage reads the key."""
    return any(key == name or key.startswith(f"{name}.") for name in UNREAD.get(stage, ()))


def unread_overrides(stage: str, overrides: Iterable[str]) -> list[str]:
    """Keys that a command sets although its stage does not read them.

    Args:
        stage: of ``uae.stage``.
        overrides: as on the command line, ``key=value``.
    """
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    return [key for key in keys if is_unread(stage, key)]
