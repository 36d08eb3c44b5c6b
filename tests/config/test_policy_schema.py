# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from verl_uae.config.policy_schema import PolicyConfig, UnifiedConfig, WindowConfig
from verl_uae.flow.window import WindowSettings


def test_defaults_form_a_valid_structured_config() -> None:
    policy = OmegaConf.structured(PolicyConfig)
    assert policy.objective.name == "dppo" and policy.kernel == "cps" and policy.lora.rank == 32
    assert OmegaConf.structured(UnifiedConfig).first == "g4u"


def test_the_window_is_the_samplers_with_the_same_defaults() -> None:
    """`uae.policy.window` is handed to WindowSettings as it is."""
    assert WindowSettings(**dataclasses.asdict(WindowConfig())) == WindowSettings()


def test_lists_and_sections_are_not_shared_between_two_configs() -> None:
    one, other = PolicyConfig(), PolicyConfig()
    one.lora.target_modules.append("mine")
    one.save_contents.clear()
    one.objective.params["clip"] = 1
    assert other == PolicyConfig() != one


@pytest.mark.parametrize(
    "override",
    [
        "uae.policy.num_stpes=3",
        "uae.policy.num_steps=many",
        "uae.policy.num_steps=null",
        "uae.policy.window.sise=2",
        "uae.policy.window.high=half",
        "uae.policy.objective.name=null",
        "uae.policy.lora.rank=0.5",
        "uae.policy.advantage.clamp=tight",
        "uae.policy.share_noise=perhaps",
        "uae.policy.lora.target_modules=attn",
        "uae.unified.g4u_steps=x",
    ],
)
def test_hydra_refuses_wrong_types_and_names(compose, tiny_overrides, override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        compose(*tiny_overrides, override, name="uae_u4g")


@pytest.mark.parametrize(
    "override", ["uae.policy.window.high=null", "uae.policy.advantage.clamp=null", "+uae.policy.objective.params.x=1"]
)
def test_hydra_takes_what_may_be_left_out_or_added(compose, tiny_overrides, override: str) -> None:
    compose(*tiny_overrides, override, name="uae_u4g")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uae.policy.objective.name", "dppo"),
        ("uae.policy.objective.params.threshold", 5e-6),
        ("uae.policy.kernel", "cps"),
        ("uae.policy.noise_level", 0.8),
        ("uae.policy.samples_per_caption", 24),
        ("uae.policy.reference_kl.coef", 0.0),
        ("uae.policy.lora.rank", 32),
        ("uae.policy.ema.decay", 0.9),
        ("uae.policy.optim.lr", 1e-4),
        ("uae.policy.fsdp_config.strategy", "fsdp2"),
        ("uae.decoder.guidance", 1.0),
        ("data.train_batch_size", 48),
    ],
)
def test_the_method_chosen_by_name_alone(compose, key: str, value: object) -> None:
    base = [f"data.train_files={__file__}", f"data.val_files={__file__}", "uae.decoder.path=org/decoder"]
    assert OmegaConf.select(compose(*base, name="uae_u4g"), key) == value
