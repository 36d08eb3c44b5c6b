# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters on the captioner: what the choice sets, and which settings are refused before Ray starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import verl_uae.config.validate as validation
from verl_uae.config.validate import ValidateCallback, validate
from verl_uae.errors import ConfigError
from verl_uae.stages.g4u.config import MOST_SERVED_RANK, validate_placement

MODEL, ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"
GPU = [f"data.train_files={__file__}", f"data.val_files={__file__}", "uae.decoder.path=org/decoder"]
LORA = "captioner/training=lora"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (
            "full",
            {f"{MODEL}.lora_rank": 0, f"{ACTOR}.fsdp_config.model_dtype": "fp32", "actor_rollout_ref.rollout.n": 4},
        ),
        (
            "lora",
            {
                f"{MODEL}.lora_rank": 32,
                f"{MODEL}.lora_alpha": 64,
                f"{MODEL}.lora.merge": True,
                f"{ACTOR}.fsdp_config.model_dtype": "bf16",
                f"{ACTOR}.freeze_vision_tower": True,
                f"{ACTOR}.optim.lr": 1e-6,
                "actor_rollout_ref.rollout.n": 4,
                "uae.reward.terms.0.name": "clip",
            },
        ),
        (
            "cyclecap",
            {
                f"{MODEL}.lora_rank": 64,
                f"{MODEL}.lora_alpha": 128,
                f"{MODEL}.lora.merge": True,
                "actor_rollout_ref.rollout.n": 8,
                "uae.reward.terms.0.name": "dreamsim",
            },
        ),
    ],
)
@pytest.mark.parametrize("name", ["uae_g4u", "uae_unified"])
def test_the_choice_sets_what_its_sources_say(compose, choice: str, expected: dict[str, Any], name: str) -> None:
    config = compose(*GPU, f"captioner/training={choice}", name=name)
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
    assert len(config.uae.reward.terms) == 1


def test_the_adapters_start_from_the_seed_of_the_run(compose) -> None:
    config = compose(*GPU, LORA, "uae.seed=7")
    assert config.actor_rollout_ref.actor.fsdp_config.seed == 7


def test_the_hardware_and_the_scenes_come_after_the_choice(compose, tiny_overrides: list[str]) -> None:
    config = compose(*tiny_overrides, LORA)
    validate(config)
    assert config.actor_rollout_ref.actor.fsdp_config.model_dtype == "fp32"
    assert config.actor_rollout_ref.actor.optim.lr == 3e-4 and config.actor_rollout_ref.rollout.n == 8


REFUSED = [
    ([f"{ACTOR}.strategy=fsdp"], f"{ACTOR}.fsdp_config.model_dtype", "use actor.strategy=fsdp2"),
    ([f"{MODEL}.lora_adapter_path=owner/adapters"], f"{MODEL}.lora_adapter_path", "is no folder of this machine"),
    (
        [f"{MODEL}.lora.merge=false", f"{ACTOR}.freeze_vision_tower=false"],
        f"{MODEL}.lora.merge",
        "leaves out adapters of a vision tower silently",
    ),
    (
        [f"{MODEL}.lora.merge=false", f"{MODEL}.lora_rank={MOST_SERVED_RANK + 1}"],
        f"{MODEL}.lora_rank",
        f"rank {MOST_SERVED_RANK} at most",
    ),
    ([f"{MODEL}.lora_rank=0"], f"{ACTOR}.fsdp_config.model_dtype", "all weights are trained in it, and small updates"),
    (
        ["captioner/training=full", f"+{ACTOR}.checkpoint.save_lora_only=true"],
        f"{ACTOR}.checkpoint.save_lora_only",
        "no adapters",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "text"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_impossible_adapters_are_named(compose, overrides: list[str], key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        validate(compose(*GPU, LORA, *overrides))
    assert caught.value.key == key


@pytest.mark.parametrize(
    "overrides",
    [
        [f"{MODEL}.lora.merge=false"],
        [f"{MODEL}.lora_rank={MOST_SERVED_RANK + 1}"],
        [f"{ACTOR}.freeze_vision_tower=false"],
        [f"{ACTOR}.strategy=fsdp", f"{ACTOR}.fsdp_config.model_dtype=fp32"],
        [f"+{ACTOR}.checkpoint.save_lora_only=true"],
        [f"{MODEL}.lora_rank=0", f"{ACTOR}.optim.optimizer_impl=torchao.optim"],
    ],
)
def test_possible_adapters_pass(compose, overrides: list[str]) -> None:
    validate(compose(*GPU, LORA, *overrides))


def test_verls_megatron_engine_would_train_all_weights(compose) -> None:
    megatron = [f"{ACTOR}.freeze_vision_tower=false"]
    validate(compose(*GPU, *megatron, name="uae_g4u_megatron"))
    with pytest.raises(ConfigError, match=r"lora_rank: is not read by verl's Megatron engine"):
        validate(compose(*GPU, *megatron, LORA, name="uae_g4u_megatron"))


def test_a_conditioner_that_follows_takes_megatrons_adapters_merged(compose) -> None:
    megatron = [f"{ACTOR}.freeze_vision_tower=false", f"{MODEL}.lora.rank=8", f"{MODEL}.lora.merge=false"]
    validate(compose(*GPU, *megatron, name="uae_g4u_megatron"))
    megatron.append("uae.conditioner.weights=synced")
    with pytest.raises(
        ConfigError, match=r"^actor_rollout_ref\.model\.lora\.merge: is false, and with uae\.conditioner"
    ):
        validate(compose(*GPU, *megatron, name="uae_g4u_megatron"))
    validate(compose(*GPU, *megatron, f"{MODEL}.lora.merge=true", name="uae_g4u_megatron"))


@pytest.mark.parametrize("name", ["uae_u4g", "uae_pretrain", "uae_cold_start"])
@pytest.mark.parametrize("setting", ["lora_rank=8", f"lora_adapter_path={Path(__file__).parent}"])
def test_a_stage_that_freezes_the_captioner_would_caption_without_its_adapters(
    compose, name: str, setting: str
) -> None:
    with pytest.raises(ConfigError, match=r"puts no adapters on the captioner; .*verl-uae export") as caught:
        validate(compose(*GPU, f"{MODEL}.{setting}", name=name))
    assert caught.value.key == f"{MODEL}.{setting.partition('=')[0]}"


def test_adapters_are_placed_before_ray_starts(
    compose, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``qkv`` is a layer of the frozen vision tower alone."""
    for config in (compose(*tiny_overrides), compose(*tiny_overrides, LORA)):
        validate_placement(config)
    config = compose(*tiny_overrides, LORA, f"{MODEL}.target_modules=[qkv]")
    with pytest.raises(ConfigError, match=r"target_modules: peft cannot place these adapters"):
        validate_placement(config)
    for name in ("resolve_paths", "check_free"):
        monkeypatch.setattr(validation, name, lambda _: None)
    with pytest.raises(SystemExit, match=r"2"):
        ValidateCallback().on_run_start(config)
    assert "impossible setting: actor_rollout_ref.model.target_modules: peft cannot" in capsys.readouterr().err
