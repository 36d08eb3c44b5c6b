# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every shipped combination lets vLLM read its weights from disk."""

from __future__ import annotations

import pytest

from tests.composing import composed
from verl_uae.config import yaml_files

RECIPES = sorted(name for name in yaml_files() if "/" not in name and name != "uae_base")
HARDWARE = sorted(path.stem for name, path in yaml_files().items() if name.startswith("hardware/"))
PRESETS = sorted(path.stem for name, path in yaml_files().items() if name.startswith("preset/"))


def test_the_lists_are_not_empty() -> None:
    assert {"uae_g4u", "uae_u4g", "uae_unified"} <= set(RECIPES)
    assert {"cpu", "cpu_vllm", "gpu"} <= set(HARDWARE)
    assert {"paper", "scenes"} <= set(PRESETS)


@pytest.mark.parametrize(
    "choice", [*(f"hardware={name}" for name in HARDWARE), *(f"preset={name}" for name in PRESETS)]
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_are_read_from_disk(recipe: str, choice: str) -> None:
    """verl's default ``dummy`` fills vLLM's image mean and std, which no weight update restores, with noise."""
    config = composed(choice, name=recipe)
    assert config.actor_rollout_ref.rollout.load_format == "auto"


def test_the_default_of_verl_is_still_dummy() -> None:
    assert composed(name="ppo_trainer").actor_rollout_ref.rollout.load_format == "dummy"


def test_cpu_vllm_differs_from_cpu_in_the_rollout_alone() -> None:
    base, config = composed("hardware=cpu"), composed("hardware=cpu_vllm")
    assert (base.actor_rollout_ref.rollout.name, config.actor_rollout_ref.rollout.name) == ("hf", "vllm")
    assert config.actor_rollout_ref.rollout.calculate_log_probs
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert environment.VERL_PLATFORM == "cpu" and environment.VLLM_CPU_KVCACHE_SPACE == "1"
    assert config.actor_rollout_ref.actor == base.actor_rollout_ref.actor
    assert (base.uae.u4g.captions.writer, config.uae.u4g.captions.writer) == ("ranks", "server")
    base.uae.u4g.captions.writer = "server"
    assert config.uae == base.uae
    assert config.trainer == base.trainer
