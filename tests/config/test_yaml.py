# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every yaml file composes under verl's primary config, and what can pass validation does: ours and verl's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_uae.config import yaml_files
from verl_uae.config.validate import validate

#: Any file that is there will do: data is not read.
BASE = [f"data.train_files={__file__}", f"data.val_files={__file__}", "uae.decoder.path=org/decoder"]
PRIMARY = sorted(name for name in yaml_files() if "/" not in name)
OPTIONS = sorted("=".join(name.rsplit("/", 1)) for name in yaml_files() if "/" in name)
#: Groups and options that only these configs choose from. What a config learns is a part of it and no choice.
ONLY: dict[str, tuple[str, ...]] = {
    "learn": (),
    "decoder/objective": ("uae_u4g", "uae_unified"),
    "captioner/training": ("uae_g4u", "uae_unified"),
    "preset": ("uae_g4u", "uae_u4g"),
    "preset=scenes_pretrain": ("uae_pretrain",),
    "preset=scenes_cold_start": ("uae_cold_start",),
}
EVERY = ("uae_g4u", "uae_u4g", "uae_pretrain", "uae_cold_start")
#: What every other config is made of.
PARTS = ("uae_base",)


def chosen(config: Any) -> tuple[str, str, str]:
    trainer = config.trainer.v1.trainer_mode
    return config.uae.stage, trainer, config.algorithm.adv_estimator


def verl_accepts(config: Any) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))


def test_the_lists_above_are_not_empty() -> None:
    assert {"uae_base", "uae_g4u", "uae_g4u_megatron", "uae_u4g", "uae_unified"} <= set(PRIMARY)
    assert {"hardware=cpu", "hardware=gpu", "preset=scenes", "uae/decoder=sd35_medium"} <= set(OPTIONS)
    assert {"decoder/objective=dppo", "decoder/objective=nft", "learn=decoder"} <= set(OPTIONS)


@pytest.mark.parametrize("name", [name for name in PRIMARY if name not in PARTS])
def test_frozen_models_leave_the_gpu_only_where_a_captioner_needs_its_memory(compose, name: str) -> None:
    config = compose(*BASE, name=name)
    captioner_shares_the_gpu = config.uae.stage in ("g4u", "unified")
    assert config.uae.decoder.offload is captioner_shares_the_gpu
    if captioner_shares_the_gpu:
        # 80 GB: actor 7 at most, resident decoder 25, activations 10, contexts 6.
        assert config.actor_rollout_ref.rollout.gpu_memory_utilization * 80 <= 80 - 7 - 25 - 10 - 6
    assert compose(*BASE, "hardware=cpu", name=name).uae.decoder.offload is False


@pytest.mark.parametrize("name", [name for name in PRIMARY if name not in PARTS])
def test_a_config_name_with_paths_only_is_valid(compose, name: str) -> None:
    # The one thing of the method that verl's Megatron engine cannot do has to be given up by hand.
    given_up = ["actor_rollout_ref.actor.freeze_vision_tower=false"] if name.endswith("megatron") else []
    config = compose(*BASE, *given_up, name=name)
    validate(config)
    verl_accepts(config)
    assert config.actor_rollout_ref.model.external_lib == "verl_uae.plugin.register"
    stage = name.removeprefix("uae_").removesuffix("_megatron")
    trains_captions = stage in ("g4u", "unified")
    assert chosen(config) == (stage, f"uae_{stage}", "uae_grpo" if trains_captions else "grpo")


@pytest.mark.parametrize(
    ("option", "name"),
    [(option, name) for option in OPTIONS for name in ONLY.get(option, ONLY.get(option.partition("=")[0], EVERY))],
)
def test_every_group_option_is_valid(compose, tiny_models: Path, option: str, name: str) -> None:
    # The preset of the scenes is for one process; the others are for eight.
    home = [f"uae_home={tiny_models}"] if option.startswith("preset=scenes") else []
    # Any file that is there will do: the networks are not read.
    weights = [f"uae.reward.terms.0.params.weights={__file__}"] if option.endswith("cyclecap") else []
    config = compose(*BASE, option, *home, *weights, "trainer.n_gpus_per_node=1", name=name)
    validate(config)
    verl_accepts(config)


@pytest.mark.parametrize("name", ["uae_u4g", "uae_unified"])
def test_scenes_on_the_cpu_is_valid_for_the_decoder_too(compose, tiny_overrides, name: str) -> None:
    config = compose(*tiny_overrides, name=name)
    validate(config)
    verl_accepts(config)
    train = config.uae.train
    assert train.lora.rank == 0 and train.train_projector and config.uae.u4g.captions.dtype == "float32"
    assert train.fsdp_config.mixed_precision.param_dtype == "fp32" and train.optim.lr == 2e-4


def test_scenes_on_the_cpu_is_valid_without_any_other_key(compose, tiny_overrides) -> None:
    config = compose(*tiny_overrides)
    validate(config)
    verl_accepts(config)
    assert config.uae.decoder.dtype == "float32" and config.trainer.device == "cpu"
    assert [term.name for term in config.uae.reward.terms] == ["pixel", "ssim"]


def test_megatron_keeps_the_method(compose) -> None:
    """Only the backend differs."""
    ours, megatron = (OmegaConf.to_container(compose(*BASE, name=name)) for name in ("uae_g4u", "uae_g4u_megatron"))
    assert ours["uae"] == megatron["uae"] and ours["algorithm"] == megatron["algorithm"]
    for key in ("kl_loss_coef", "clip_ratio", "ppo_mini_batch_size", "freeze_vision_tower", "use_kl_loss"):
        assert ours["actor_rollout_ref"]["actor"][key] == megatron["actor_rollout_ref"]["actor"][key], key
    assert megatron["actor_rollout_ref"]["actor"]["strategy"] == "megatron"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.rollout.n", 4),
        ("actor_rollout_ref.rollout.temperature", 1.0),
        ("actor_rollout_ref.actor.optim.lr", 1e-6),
        ("actor_rollout_ref.actor.kl_loss_coef", 1e-6),
        ("actor_rollout_ref.actor.freeze_vision_tower", True),
        ("actor_rollout_ref.rollout.load_format", "auto"),
        ("uae.decoder.num_steps", 10),
        ("uae.decoder.guidance", 5.0),
        ("uae.conditioner.length", 640),
        ("uae.conditioner.path", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("uae.reward.advantage_std", "group"),
        ("data.custom_cls.name", "UAEDataset"),
    ],
)
def test_the_papers_setting(compose, key: str, value: object) -> None:
    assert OmegaConf.select(compose(*BASE), key) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uae.u4g.objective.name", "dppo"),
        ("uae.u4g.objective.params.threshold", 5e-6),
        ("uae.u4g.kernel", "cps"),
        ("uae.u4g.noise_level", 0.8),
        ("uae.u4g.samples_per_caption", 24),
        ("uae.u4g.reference_kl.coef", 0.0),
        ("uae.train.lora.rank", 32),
        ("uae.train.ema.decay", 0.9),
        ("uae.train.optim.lr", 1e-4),
        ("uae.train.fsdp_config.strategy", "fsdp2"),
        ("uae.decoder.guidance", 1.0),
        ("data.train_batch_size", 48),
    ],
)
def test_the_method_chosen_by_name_alone(compose, key: str, value: object) -> None:
    base = [f"data.train_files={__file__}", f"data.val_files={__file__}", "uae.decoder.path=org/decoder"]
    assert OmegaConf.select(compose(*base, name="uae_u4g"), key) == value
