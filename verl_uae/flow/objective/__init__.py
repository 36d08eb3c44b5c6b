# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of the decoder's policy, by name. Importing this package registers the built-in ones."""

from __future__ import annotations

from verl_uae.flow.objective import clip, dppo, guard, nft
from verl_uae.flow.objective.registry import bind_objective, get_objective, objective_names, register_objective
from verl_uae.flow.objective.types import ForwardInputs, ObjectiveOutput, TransitionInputs
from verl_uae.flow.objective.user_file import load_objective

__all__ = [
    "ForwardInputs",
    "ObjectiveOutput",
    "TransitionInputs",
    "bind_objective",
    "clip",
    "dppo",
    "get_objective",
    "guard",
    "load_objective",
    "nft",
    "objective_names",
    "register_objective",
]
