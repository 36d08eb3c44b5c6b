# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Keys whose null leaves to the training command how memory is turned into time; no number of the training depends on
them but in its last bits."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.settings import DECODING
from verl_uae.stages.cold_start.config import most_kept

#: Whether activations are computed again, and of how many steps of the cold start's sampler they are kept.
RECOMPUTE, KEEP = "uae.train.gradient_checkpointing", "uae.cold_start.kept_steps"


def left_open(config: DictConfig) -> dict[str, list[Any]]:
    """Keys that are null and read, and their values, what takes most memory and least time first.

    They are decided one after the other: the first while the next has its last value.
    """
    uae = config.uae
    values: dict[str, list[Any]] = {}
    if uae.stage in DECODING:
        values[RECOMPUTE] = [False, True]
    if uae.stage == "cold_start":
        values[KEEP] = list(range(most_kept(config), -1, -1))
    return {key: several for key, several in values.items() if OmegaConf.select(config, key) is None}
