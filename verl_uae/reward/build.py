# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the scorer from the composed configuration."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from verl_uae.reward.scorer import RewardScorer, TermSpec


def build_scorer(config: DictConfig, device: str | torch.device) -> RewardScorer:
    """The scorer of ``uae.reward``, with verl's custom reward function as one more term if it is set."""
    summed, watched = term_specs(config)
    return RewardScorer(summed, held_out=watched, device=device, timeout_s=config.uae.reward.timeout_s)


def term_specs(config: DictConfig) -> tuple[list[TermSpec], list[TermSpec]]:
    """Terms that are summed, and terms that are only measured."""
    reward = config.uae.reward
    summed: list[TermSpec] = []
    watched: list[TermSpec] = []
    for index, term in enumerate(reward.terms):
        params: Any = OmegaConf.to_container(term.params, resolve=True)
        spec = TermSpec(
            name=term.name,
            weight=0.0 if term.held_out else term.weight,
            params={str(key): value for key, value in params.items()},
            label=term.label or "",
            key=f"uae.reward.terms[{index}]",
        )
        (watched if term.held_out else summed).append(spec)
    custom = config.reward.custom_reward_function
    if custom.path:
        kwargs = OmegaConf.to_container(custom.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
        params = {"path": custom.path, "name": custom.name, "reward_kwargs": kwargs}
        key = "reward.custom_reward_function"
        summed.append(TermSpec(name="custom", weight=reward.custom_weight, params=params, key=key))
    return summed, watched
