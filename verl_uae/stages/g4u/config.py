# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.rollout``."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.settings import check_whole, key


@dataclass
class RolloutExtrasConfig:
    """``uae.rollout``: what our agent loop adds to verl's rollout."""

    timeout_s: float = key(600.0, above=0)
    """Longest time one caption may take, seconds, above 0; then that sample is marked timeout."""

    seeded: bool = True
    """Give every caption request its own derived seed; needed for repeatable runs."""

    poll_interval_s: float = key(0.1, above=0)
    """How often the trainer asks whether all captions are there, seconds, above 0. verl's own value is 2.0."""


def validate(config: DictConfig) -> None:
    """Check the stages whose captioner learns from rewards, without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    _validate_grpo(config)
    _validate_captioner(config)
    _validate_micro_batches(config)


def _validate_grpo(config: DictConfig) -> None:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if str(actor.get("_target_", "")).endswith("McoreActorConfig") and actor.strategy != "megatron":
        raise ConfigError(
            "actor_rollout_ref.actor.strategy",
            f"is {actor.strategy} with model_engine=megatron; set actor, ref and model_type as uae_g4u_megatron does",
        )
    if rollout.n < 2:
        raise ConfigError(
            "actor_rollout_ref.rollout.n", f"a group needs at least 2 captions to compare, got {rollout.n}"
        )
    validation = rollout.val_kwargs
    if validation.temperature > 0 and not validation.do_sample:
        raise ConfigError(
            "actor_rollout_ref.rollout.val_kwargs.do_sample",
            "is false, but verl samples the captions of validation at val_kwargs.temperature="
            f"{validation.temperature:g} whatever it says; set it to true, or the temperature to 0 for greedy captions",
        )
    if rollout.name == "vllm" and rollout.load_format == "dummy":
        raise ConfigError(
            "actor_rollout_ref.rollout.load_format",
            "dummy leaves vLLM's image mean and std random, silently: captions would describe noise; use auto",
        )
    if config.algorithm.adv_estimator != "uae_grpo":
        raise ConfigError(
            "algorithm.adv_estimator",
            f"{config.algorithm.adv_estimator!r} does not know missing rewards; this trainer needs uae_grpo",
        )
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        raise ConfigError("algorithm.filter_groups.enable", "needs rewards during generation; not supported here")


def _validate_captioner(config: DictConfig) -> None:
    """What of the captioner is trained, and how it reaches the caption server."""
    hybrid, key = config.actor_rollout_ref, "actor_rollout_ref.model"
    if hybrid.actor.strategy == "megatron" and hybrid.actor.freeze_vision_tower:
        raise ConfigError(
            "actor_rollout_ref.actor.freeze_vision_tower",
            "is true, and verl's Megatron engine does not obey it: the tower would train, with which reconstructions "
            "collapse (paper, Fig. 9); use FSDP2 (uae_g4u without megatron), or set it to false to train the tower",
        )
    if hybrid.actor.strategy == "megatron":
        return
    # verl's checkpoint cuts a fraction of alpha off, and an export would scale by what is left.
    check_whole(config, {f"{key}.lora_rank": 0, f"{key}.lora_alpha": 1})
    if hybrid.model.get("target_parameters"):
        raise ConfigError(f"{key}.target_parameters", f"no export knows these adapters; use {key}.target_modules")
    if hybrid.model.lora.get("rank", 0) > 0:
        raise ConfigError(f"{key}.lora.rank", f"is of Megatron's adapters; with FSDP it is {key}.lora_rank")
    if hybrid.model.get("lora_adapter_path") is not None and hybrid.model.lora_rank <= 0:
        raise ConfigError(f"{key}.lora_adapter_path", f"is not read without {key}.lora_rank of these adapters")
    if hybrid.rollout.name == "hf" and hybrid.model.lora_rank > 0 and not hybrid.model.lora.merge:
        raise ConfigError(f"{key}.lora.merge", "rollout.name=hf takes merged weights only; set it to true")


def _validate_micro_batches(config: DictConfig) -> None:
    """verl splits the samples of a rank into equal micro-batches and fails in the first step if they do not fit."""
    hybrid = config.actor_rollout_ref
    if hybrid.actor.use_dynamic_bsz or hybrid.actor.strategy == "megatron":
        return
    # Ranks that split a sequence between them hold the same samples.
    split = max(hybrid.actor.ulysses_sequence_parallel_size, hybrid.actor.fsdp_config.ulysses_sequence_parallel_size)
    world = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if world % split:
        raise ConfigError("actor_rollout_ref.actor.ulysses_sequence_parallel_size", f"{split} must divide {world} GPUs")
    ranks = world // split
    batch, mini = config.data.train_batch_size, hybrid.actor.ppo_mini_batch_size
    if mini > batch or batch % mini:
        raise ConfigError("actor_rollout_ref.actor.ppo_mini_batch_size", f"{mini} must divide train_batch_size {batch}")
    checks = (
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", mini),
        ("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", batch),
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", batch),
    )
    for name, images in checks:
        micro, samples = OmegaConf.select(config, name), images * hybrid.rollout.n / ranks
        if micro and samples % micro:
            raise ConfigError(
                name,
                f"{micro} must divide the {samples:g} captions a rank has "
                f"({images} images x {hybrid.rollout.n} captions / {ranks} ranks)",
            )
