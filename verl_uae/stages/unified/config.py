# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.unified``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.settings import key, set_keys
from verl_uae.stages.common.config import is_joint


@dataclass
class UnifiedConfig:
    """``uae.unified``: how the unified stage trains both."""

    schedule: str = key("turns", choices=("turns", "joint"))
    """turns: steps of G4U and of U4G alternate. joint: in every step both learn from one batch of pictures. Each of the
    ``actor_rollout_ref.rollout.n`` captions of a picture is drawn ``uae.u4g.samples_per_caption`` times by the decoder
    that trains; the mean of these drawings rewards the caption, and they are a group of the decoder's. Our choice."""

    g4u_steps: int = key(50, at_least=1)
    """turns: steps of Generation for Understanding in a cycle, at least 1. Our choice."""

    u4g_steps: int = key(50, at_least=1)
    """turns: steps of Understanding for Generation in a cycle, at least 1. Our choice."""

    first: str = key("g4u", choices=("g4u", "u4g"))
    """turns: which stage a cycle starts with: g4u or u4g. Paper: g4u."""


#: Keys of turns, of captions that are written for the decoder alone, and of decoder workers: joint has none of them.
_UNREAD = (
    "uae.unified.g4u_steps",
    "uae.unified.u4g_steps",
    "uae.unified.first",
    "uae.u4g.captions.do_sample",
    "uae.u4g.captions.temperature",
    "uae.decoder.max_restarts",
    "uae.decoder.max_wait_ms",
)

#: Keys of decoder workers -> what is possible without them, and why nothing else is.
_WITHOUT_WORKERS = {
    "uae.decoder.pool": ("colocated", "the ranks that train the decoder draw, on the trainer's GPUs"),
    "uae.decoder.seeds_per_caption": (1, "a caption is drawn uae.u4g.samples_per_caption times"),
    "uae.g4u.ahead": (0, "captions cannot be written while GPUs draw that the caption servers need too"),
}


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
    if is_joint(config):
        for name, (only, why) in _WITHOUT_WORKERS.items():
            value = OmegaConf.select(config, name)
            if value != only:
                raise ConfigError(name, f"{value}: with uae.unified.schedule=joint {why}; only {only} is possible")
        return
    served = config.actor_rollout_ref.rollout.temperature
    if captions.do_sample and captions.temperature != served:
        raise ConfigError(
            "uae.u4g.captions.temperature",
            f"{captions.temperature}: in the unified stage the caption server samples at "
            f"actor_rollout_ref.rollout.temperature={served}",
        )


def unread_in_joint(config: DictConfig, overrides: Iterable[str]) -> list[str]:
    """Keys that a command sets although the schedule ``joint`` does not read them.

    Args:
        config: the whole composed configuration.
        overrides: as on the command line, ``key=value``.
    """
    return [name for name in set_keys(overrides) if name in _UNREAD] if is_joint(config) else []
