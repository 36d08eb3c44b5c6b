# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards: how much of the picture came back.

A term (:mod:`verl_uae.reward.term`) scores pictures; the scorer (:mod:`verl_uae.reward.scorer`) sums terms and turns
every fault into a record (:mod:`verl_uae.reward.record`). This layer knows neither verl nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verl_uae.reward.function import reward_function
    from verl_uae.reward.record import RewardBatch, RewardRecord, Status, to_tensors
    from verl_uae.reward.registry import get_reward, load_reward_file, register_reward, reward_names
    from verl_uae.reward.scorer import RewardScorer, TermSpec
    from verl_uae.reward.term import RewardTerm, TermContext

__all__ = [
    "RewardBatch",
    "RewardRecord",
    "RewardScorer",
    "RewardTerm",
    "Status",
    "TermContext",
    "TermSpec",
    "get_reward",
    "load_reward_file",
    "register_reward",
    "reward_function",
    "reward_names",
    "to_tensors",
]


def __getattr__(name: str) -> Any:
    # On first use: who reads the configuration of the rewards need not import torch.
    if name in __all__:
        for module in ("record", "term", "function", "registry", "scorer"):
            found = importlib.import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
