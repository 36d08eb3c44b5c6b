# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.rollout`` and ``uae.g4u``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.settings import CAPTIONING, check_whole, key
from verl_uae.stages.common.config import FULL_PRECISION

_MODEL = "actor_rollout_ref.model"

#: Largest rank of vLLM's ``max_lora_rank``.
MOST_SERVED_RANK = 512


@dataclass
class RolloutExtrasConfig:
    """``uae.rollout``: what our agent loop adds to verl's rollout."""

    timeout_s: float = key(600.0, above=0)
    """Longest time one caption may take, seconds, above 0; then that sample is marked timeout."""

    seeded: bool = True
    """Give every caption request its own derived seed; needed for repeatable runs."""

    poll_interval_s: float = key(0.1, above=0)
    """How often the trainer asks the queue whether all captions are there, seconds, above 0. verl's own value is 2.0.
    It does not have to ask unless ``actor_rollout_ref.rollout.agent.agent_loop_manager_class`` is another's."""


@dataclass
class G4UConfig:
    """``uae.g4u``: the order of a step of Generation for Understanding."""

    ahead: int = key(0, at_least=0, at_most=1)
    """Steps by which captions run ahead of their training, 0 or 1. 1: while the decoders draw and score a batch, the
    captions of the next one are written, with the weights from before this step's update, so they are one step off
    policy (algorithm.rollout_correction says how that is corrected). Needs uae.decoder.pool=own and
    uae.decoder.schedule=phased. A step that is saved writes nothing ahead."""


def validate(config: DictConfig) -> None:
    """Check the stages whose captioner learns from rewards, without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    _validate_grpo(config)
    _validate_ahead(config)
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


def _validate_ahead(config: DictConfig) -> None:
    uae, correction = config.uae, config.algorithm.rollout_correction
    if not uae.g4u.ahead:
        return
    name = "uae.g4u.ahead"
    if uae.decoder.pool != "own":
        raise ConfigError(
            name,
            "1: captions are written while the decoders draw, and with uae.decoder.pool=colocated both need the same "
            "GPUs; give the decoders GPUs of their own (uae.decoder.pool=own), or set it to 0",
        )
    if uae.decoder.schedule != "phased":
        raise ConfigError(
            name,
            f"1: uae.decoder.schedule={uae.decoder.schedule} decodes a step's captions while others of it are written; "
            "use schedule=phased, or set it to 0",
        )
    if uae.conditioner.weights != "frozen":
        raise ConfigError(
            name,
            f"1: uae.conditioner.weights={uae.conditioner.weights} promises that captions are conditioned on by the "
            "weights that wrote them, which would be one update further; use weights=frozen, or set it to 0",
        )
    if correction.rollout_is is None and correction.rollout_rs is None and not correction.bypass_mode:
        raise ConfigError(
            name,
            "1: captions are one step off policy, and algorithm.rollout_correction corrects nothing; set "
            "algorithm.rollout_correction.rollout_is=token (or sequence), or bypass_mode=true, or set it to 0",
        )
    if config.trainer.save_freq == 1:
        raise ConfigError(
            name,
            "1: a step that is saved writes nothing ahead, and trainer.save_freq=1 saves every one; use a larger "
            "save_freq, or set it to 0",
        )


def _validate_captioner(config: DictConfig) -> None:
    """What of the captioner is trained, and how it reaches the caption server."""
    hybrid = config.actor_rollout_ref
    if hybrid.actor.strategy == "megatron" and hybrid.actor.freeze_vision_tower:
        raise ConfigError(
            "actor_rollout_ref.actor.freeze_vision_tower",
            "is true, and verl's Megatron engine does not obey it: the tower would train, with which reconstructions "
            "collapse (paper, Fig. 9); use FSDP2 (uae_g4u without megatron), or set it to false to train the tower",
        )
    # verl's checkpoint cuts a fraction of alpha off, and an export would scale by what is left.
    check_whole(config, {f"{_MODEL}.lora_rank": 0, f"{_MODEL}.lora_alpha": 1})
    if hybrid.actor.strategy == "megatron":
        if hybrid.model.lora_rank > 0:
            raise ConfigError(
                f"{_MODEL}.lora_rank",
                "is not read by verl's Megatron engine, which would train all weights and take them for their own "
                f"reference; its adapters are {_MODEL}.lora.rank",
            )
        return
    if hybrid.model.get("target_parameters"):
        raise ConfigError(f"{_MODEL}.target_parameters", f"no export knows these adapters; use {_MODEL}.target_modules")
    if hybrid.model.lora.get("rank", 0) > 0:
        raise ConfigError(f"{_MODEL}.lora.rank", f"is of Megatron's adapters; with FSDP it is {_MODEL}.lora_rank")
    if hybrid.model.lora_rank > 0:
        _validate_adapters(config)
    elif hybrid.model.get("lora_adapter_path") is not None:
        raise ConfigError(f"{_MODEL}.lora_adapter_path", f"is not read without {_MODEL}.lora_rank of these adapters")
    elif hybrid.actor.checkpoint.get("save_lora_only"):
        raise ConfigError(
            "actor_rollout_ref.actor.checkpoint.save_lora_only",
            "is true, but no adapters are trained; set it to false, or choose captioner/training=lora",
        )
    else:
        _validate_all_weights(hybrid.actor)


def _validate_all_weights(actor: DictConfig) -> None:
    precision = actor.fsdp_config.get("model_dtype")
    # Others may round at random, which loses nothing on average.
    if precision not in FULL_PRECISION and actor.optim.get("optimizer_impl") == "torch.optim":
        raise ConfigError(
            "actor_rollout_ref.actor.fsdp_config.model_dtype",
            f"{precision}: all weights are trained in it, and small updates are rounded away; use fp32, or train "
            f"adapters ({_MODEL}.lora_rank above 0, as captioner/training=lora has it)",
        )


def _validate_adapters(config: DictConfig) -> None:
    hybrid, path = config.actor_rollout_ref, config.actor_rollout_ref.model.get("lora_adapter_path")
    if path is not None and not Path(path).is_dir():
        raise ConfigError(
            f"{_MODEL}.lora_adapter_path", f"{path}: is no folder of this machine; fetch the adapters first"
        )
    precision = hybrid.actor.fsdp_config.get("model_dtype")
    if hybrid.actor.strategy != "fsdp2" and precision not in FULL_PRECISION:
        raise ConfigError(
            "actor_rollout_ref.actor.fsdp_config.model_dtype",
            f"{precision}: with strategy={hybrid.actor.strategy} the adapters have it too, and small updates are "
            "rounded away; use actor.strategy=fsdp2, which holds them in fp32, or model_dtype=fp32",
        )
    if hybrid.model.lora.merge:
        return
    if hybrid.rollout.name == "hf":
        raise ConfigError(f"{_MODEL}.lora.merge", "rollout.name=hf takes merged weights only; set it to true")
    if not hybrid.actor.freeze_vision_tower:
        raise ConfigError(
            f"{_MODEL}.lora.merge",
            "is false, and vLLM leaves out adapters of a vision tower silently: captions would come from another model "
            "than the one that trains; set it to true, or actor.freeze_vision_tower to true",
        )
    if hybrid.model.lora_rank > MOST_SERVED_RANK:
        raise ConfigError(
            f"{_MODEL}.lora_rank",
            f"{hybrid.model.lora_rank}: vLLM serves adapters of rank {MOST_SERVED_RANK} at most; set "
            f"{_MODEL}.lora.merge to true, which sends them multiplied in",
        )


def validate_placement(config: DictConfig) -> None:
    """Place the adapters of a run on its captioner without weights, where both are on this machine.

    Raises:
        ConfigError: naming the key of adapters that have no place, or that no checkpoint or export could hold.
    """
    hybrid = config.actor_rollout_ref
    if config.uae.stage not in CAPTIONING or hybrid.actor.strategy == "megatron" or hybrid.model.lora_rank < 1:
        return
    folder = Path(hybrid.model.path)
    # What needs the code of its folder is built by verl alone.
    if hybrid.model.get("trust_remote_code") or not folder.is_dir():
        return
    # Imported here: torch and peft are not needed to read a configuration.
    from verl_uae.checkpoints.captioner_adapters import Placement, check_placement

    stored = hybrid.model.get("lora_adapter_path")
    plain = OmegaConf.to_container(hybrid.model, resolve=True)
    assert isinstance(plain, dict)
    placement = Placement(
        lora_rank=hybrid.model.lora_rank,
        lora_alpha=hybrid.model.lora_alpha,
        target_modules=plain["target_modules"],
        exclude_modules=plain["exclude_modules"],
        lora_adapter_path=None if stored is None else Path(stored),
        frozen_tower=hybrid.actor.freeze_vision_tower,
    )
    try:
        check_placement(folder, placement)
    except CheckpointError as error:
        raise ConfigError(f"{_MODEL}.lora_adapter_path", str(error)) from error


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
