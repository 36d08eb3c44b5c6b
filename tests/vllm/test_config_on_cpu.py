# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every shipped combination lets vLLM read its weights from disk."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import verl  # noqa: F401  loads our plugin, which puts our configs on Hydra's search path
from hydra import compose, initialize_config_module

CONFIGS = files("verl_uae.config")
RECIPES = sorted(
    name
    for entry in CONFIGS.iterdir()
    if (name := entry.name.removesuffix(".yaml")).startswith("uae_") and name != "uae_base"
)
HARDWARE = sorted(entry.name.removesuffix(".yaml") for entry in (CONFIGS / "hardware").iterdir())
PRESETS = sorted(entry.name.removesuffix(".yaml") for entry in (CONFIGS / "preset").iterdir())


def compose_config(recipe: str, *overrides: str) -> Any:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(recipe, overrides=list(overrides))


def test_the_lists_are_not_empty() -> None:
    assert {"uae_g4u", "uae_u4g", "uae_unified"} <= set(RECIPES)
    assert {"cpu", "cpu_vllm", "gpu"} <= set(HARDWARE)
    assert {"paper", "scenes"} <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_are_read_from_disk(recipe: str, hardware: str, preset: str) -> None:
    """verl's default ``dummy`` fills vLLM's image mean and std, which no weight update restores, with noise."""
    config = compose_config(recipe, f"hardware={hardware}", f"preset={preset}")
    assert config.actor_rollout_ref.rollout.load_format == "auto"


def test_the_default_of_verl_is_still_dummy() -> None:
    assert compose_config("ppo_trainer").actor_rollout_ref.rollout.load_format == "dummy"


def test_cpu_vllm_differs_from_cpu_in_the_rollout_alone() -> None:
    base, config = compose_config("uae_g4u", "hardware=cpu"), compose_config("uae_g4u", "hardware=cpu_vllm")
    assert (base.actor_rollout_ref.rollout.name, config.actor_rollout_ref.rollout.name) == ("hf", "vllm")
    assert config.actor_rollout_ref.rollout.calculate_log_probs
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert environment.VERL_PLATFORM == "cpu" and environment.VLLM_CPU_KVCACHE_SPACE == "1"
    assert config.actor_rollout_ref.actor == base.actor_rollout_ref.actor
    assert config.uae == base.uae
    assert config.trainer == base.trainer
