# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the scorer, and what the trainer does with its values, from the composed configuration."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from verl_uae.reward.registry import load_reward_file
from verl_uae.reward.scorer import RewardScorer, TermSpec
from verl_uae.reward.step import Composition, GroupScorer, Part, Tripwire


def build_scorer(config: DictConfig, device: str | torch.device) -> RewardScorer:
    """The scorer of ``uae.reward`` without its groupwise terms, with verl's custom reward function if it is set."""
    summed, watched = ([spec for spec in specs if not spec.groupwise] for specs in term_specs(config))
    reward = config.uae.reward
    cache = reward.source_cache_mib * 1024 * 1024
    return RewardScorer(summed, held_out=watched, device=device, timeout_s=reward.timeout_s, source_cache_bytes=cache)


def has_groupwise(config: DictConfig) -> bool:
    """Whether a term compares the members of a group."""
    return any(spec.groupwise for specs in term_specs(config) for spec in specs)


def build_group_scorer(config: DictConfig) -> GroupScorer | None:
    """The scorer of the groupwise terms; None where there are none."""
    summed, watched = ([spec for spec in specs if spec.groupwise] for specs in term_specs(config))
    return GroupScorer(summed, watched, config.uae.reward.timeout_s) if summed or watched else None


def build_composition(config: DictConfig) -> Composition:
    """The sum of ``uae.reward.terms`` with the terms that are normalised; loads no model."""
    summed, _ = term_specs(config)
    given = {term.label or term.name: term for term in config.uae.reward.terms}
    parts = []
    for spec in summed:
        # verl's custom reward function is no entry of the list.
        entry = given.get(spec.label)
        normalize, tie = (entry.normalize, entry.tie) if entry is not None else ("none", 0.0)
        parts.append(Part(spec.label, spec.factor, normalize, tie))
    return Composition(parts)


def build_tripwire(config: DictConfig) -> Tripwire | None:
    """The watch over the held-out terms; None where it is switched off."""
    window = config.uae.reward.tripwire_window
    if window == 0:
        return None
    _, watched = term_specs(config)
    return Tripwire({spec.label: spec.higher_is_better for spec in watched}, window)


def term_specs(config: DictConfig) -> tuple[list[TermSpec], list[TermSpec]]:
    """Terms that are summed, and terms that are only measured; loads ``uae.reward.files`` first.

    Raises:
        ConfigError: a file is refused, or claims a name that is taken.
    """
    reward = config.uae.reward
    for index, path in enumerate(reward.files):
        load_reward_file(path, f"uae.reward.files[{index}]")
    summed: list[TermSpec] = []
    watched: list[TermSpec] = []
    for index, term in enumerate(reward.terms):
        params: Any = OmegaConf.to_container(term.params, resolve=True)
        spec = TermSpec(
            name=term.name,
            weight=0.0 if term.held_out else term.weight,
            params={str(key): value for key, value in params.items()},
            label=term.label or "",
            floor=term.floor,
            key=f"uae.reward.terms[{index}]",
        )
        (watched if term.held_out else summed).append(spec)
    custom = config.reward.custom_reward_function
    if custom.path:
        kwargs = OmegaConf.to_container(custom.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
        params = {"path": custom.path, "name": custom.name, "reward_kwargs": kwargs}
        key = "reward.custom_reward_function"
        summed.append(TermSpec(name="custom", weight=reward.custom_weight, params=params, key=key, params_key=key))
    return summed, watched
