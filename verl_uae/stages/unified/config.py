# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.unified``."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from verl_uae.errors import ConfigError
from verl_uae.settings import key


@dataclass
class UnifiedConfig:
    """``uae.unified``: how the unified stage alternates."""

    g4u_steps: int = key(50, at_least=1)
    """Steps of Generation for Understanding in a cycle, at least 1. Our choice."""

    u4g_steps: int = key(50, at_least=1)
    """Steps of Understanding for Generation in a cycle, at least 1. Our choice."""

    first: str = key("g4u", choices=("g4u", "u4g"))
    """Which stage a cycle starts with: g4u or u4g. Paper: g4u."""


def validate(config: DictConfig) -> None:
    """Check how the two stages fit together.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    captions = config.uae.u4g.captions
    if captions.source == "column":
        raise ConfigError(
            "uae.u4g.captions.source", "column: in the unified stage the trained captioner writes them; use captioner"
        )
    served = config.actor_rollout_ref.rollout.temperature
    if captions.do_sample and captions.temperature != served:
        raise ConfigError(
            "uae.u4g.captions.temperature",
            f"{captions.temperature}: in the unified stage the caption server samples at "
            f"actor_rollout_ref.rollout.temperature={served}",
        )
