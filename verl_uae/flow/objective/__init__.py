# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of the decoder's policy, by name."""

from __future__ import annotations

from verl_uae.flow.objective.registry import (
    bind_objective,
    get_objective,
    load_objective,
    register_objective,
)
from verl_uae.flow.objective.types import ForwardInputs, ObjectiveOutput, TransitionInputs

__all__ = [
    "ForwardInputs",
    "ObjectiveOutput",
    "TransitionInputs",
    "bind_objective",
    "get_objective",
    "load_objective",
    "register_objective",
]
