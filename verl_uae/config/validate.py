# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses impossible settings before Ray starts, naming the Hydra key."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_uae.checkpoints.inference import MOST_STEPS
from verl_uae.config import STAGES
from verl_uae.config.checks import check_choices, check_finite, check_maximum, check_minimum, check_whole
from verl_uae.config.keys import check_keys
from verl_uae.config.path_keys import resolve_paths, validate_models, validate_paths, validate_sizes
from verl_uae.config.run_lock import check_free
from verl_uae.config.validate_policy import validate_policy
from verl_uae.config.validate_run import CAPTIONING, SUPERVISED, validate_run
from verl_uae.config.validate_supervised import validate_supervised
from verl_uae.config.validate_verl import validate_verl
from verl_uae.errors import ConfigError, UAEError
from verl_uae.unread import unread_overrides

_DTYPES = ("float32", "float16", "bfloat16")
_CHOICES = {
    "uae.decoder.dtype": _DTYPES,
    "uae.conditioner.dtype": _DTYPES,
    "uae.decoder.schedule": ("phased", "streamed"),
    "uae.decoder.pool": ("colocated", "own"),
    "uae.conditioner.weights": ("frozen",),
    "uae.reward.advantage_std": ("group", "global", "none"),
    "uae.checkpoint.export": ("last", "every"),
    "uae.stage": STAGES,
}
#: key -> (smallest, whether the smallest itself is allowed)
_MINIMUM = {
    "uae.decoder.num_steps": (1, True),
    "uae.decoder.guidance": (1, True),
    "uae.decoder.seeds_per_caption": (1, True),
    "uae.decoder.batch_size": (1, True),
    "uae.decoder.vae_batch_size": (1, True),
    "uae.decoder.height": (1, True),
    "uae.decoder.width": (1, True),
    "uae.decoder.timeout_s": (0, False),
    "uae.decoder.max_wait_ms": (0, True),
    "uae.decoder.max_restarts": (0, True),
    "uae.decoder.n_gpus_per_node": (1, True),
    "uae.decoder.nnodes": (1, True),
    "uae.conditioner.length": (1, True),
    "uae.reward.timeout_s": (0, False),
    "uae.reward.min_std": (0, True),
    "uae.reward.max_invalid_fraction": (0, True),
    "uae.reward.source_cache_mib": (0, True),
    "uae.reward.tripwire_window": (0, True),
    "uae.rollout.timeout_s": (0, False),
    "uae.rollout.poll_interval_s": (0, False),
    "uae.panel.probes": (0, True),
    "uae.supervision.stall_timeout_s": (0, False),
    "uae.supervision.grace_s": (0, False),
}
#: Numbers of denoising steps.
_STEPS = ("uae.decoder.num_steps", "uae.policy.num_steps", "uae.cold_start.num_steps")
#: Numbers whose comparisons below a NaN would pass.
_FINITE = (
    "uae.decoder.shift",
    "uae.reward.custom_weight",
    "uae.policy.advantage.clamp",
    "uae.pretrain.shift",
    "uae.pretrain.density.logit_mean",
)


class ValidateCallback(Callback):
    """Hydra callback of our configs: runs in the driver before the job."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Resolve paths and validate, or leave with exit code 2; name what is set and has no effect."""
        try:
            resolve_paths(config)
            validate(config)
            check_free(Path(config.trainer.default_local_dir))
            validate_models(config)
            validate_sizes(config)
        except UAEError as error:
            # Hydra turns an exception of a callback into a warning and goes on.
            sys.stderr.write(f"verl_uae: impossible setting: {error}\n")
            raise SystemExit(2) from error
        except Exception as error:
            # Fault boundary, for the same reason: a check that breaks must not let through what it should refuse.
            traceback.print_exc()
            sys.stderr.write(f"verl_uae: the settings could not be checked: {type(error).__name__}: {error}\n")
            raise SystemExit(2) from error
        for key in unread_overrides(config.uae.stage, config.hydra.overrides.task):
            sys.stderr.write(f"verl_uae: warning: {key} is set, but stage {config.uae.stage} does not read it\n")


def validate(config: DictConfig) -> None:
    """Check everything that can be checked without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    check_keys(config.uae)
    check_choices(config, _CHOICES)
    check_minimum(config, _MINIMUM)
    check_maximum(config, dict.fromkeys(_STEPS, MOST_STEPS))
    check_finite(config, _FINITE)
    validate_verl(config)
    for key in ("data.train_files", "data.val_files"):
        if not OmegaConf.select(config, key):
            raise ConfigError(key, "is not set: a parquet file, for example from `verl-uae data pack FOLDER --out DIR`")
    stage = config.uae.stage
    validate_run(config)
    if stage in CAPTIONING:
        _validate_grpo(config)
        _validate_captioner(config)
        _validate_micro_batches(config)
    _validate_shared(config)
    _validate_decoder(config)
    _validate_rewards(config)
    if stage in ("u4g", "unified"):
        validate_policy(config)
    elif stage in SUPERVISED:
        validate_supervised(config)
    validate_paths(config)


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


def _validate_shared(config: DictConfig) -> None:
    """What holds for every stage."""
    if config.uae.reward.max_invalid_fraction > 1:
        raise ConfigError("uae.reward.max_invalid_fraction", "is a share, at most 1")
    if config.reward.reward_model.enable:
        raise ConfigError("reward.reward_model.enable", "rewards come from the decoder workers; use uae.reward.terms")
    check_whole(config, {"trainer.save_freq": -1}, " (-1 for none)")
    if config.trainer.get("max_actor_ckpt_to_keep") is not None:
        # A number below 0 would count from the other end.
        check_whole(config, {"trainer.max_actor_ckpt_to_keep": 1}, " (or null for all steps)")
    if config.data.truncation != "error":
        raise ConfigError("data.truncation", f"{config.data.truncation!r} could cut through an image; use error")


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
    for key, images in checks:
        micro, samples = OmegaConf.select(config, key), images * hybrid.rollout.n / ranks
        if micro and samples % micro:
            raise ConfigError(
                key,
                f"{micro} must divide the {samples:g} captions a rank has "
                f"({images} images x {hybrid.rollout.n} captions / {ranks} ranks)",
            )


def _validate_decoder(config: DictConfig) -> None:
    decoder = config.uae.decoder
    if OmegaConf.is_missing(decoder, "path") or not decoder.path:
        raise ConfigError("uae.decoder.path", "is not set: a diffusers folder or hub id with a projector")
    if decoder.schedule == "streamed" and decoder.pool != "own":
        raise ConfigError("uae.decoder.pool", "the streamed schedule runs beside the caption server and needs own")
    if decoder.shift is not None and decoder.shift <= 0:
        raise ConfigError("uae.decoder.shift", f"must be above 0, got {decoder.shift}")


def _validate_rewards(config: DictConfig) -> None:
    # Imported here: the schema is needed in places that must not pay for torch.
    from verl_uae.reward.build import term_specs
    from verl_uae.reward.scorer import check_specs
    from verl_uae.reward.step import NORMALIZATIONS, is_groupwise

    for index, term in enumerate(config.uae.reward.terms):
        key = f"uae.reward.terms[{index}].normalize"
        if term.normalize not in NORMALIZATIONS:
            raise ConfigError(key, f"must be one of {', '.join(NORMALIZATIONS)}, got {term.normalize!r}")
        if term.held_out and term.normalize != "none":
            raise ConfigError(key, "a held-out term is in no sum; leave it at none")
        if not term.tie >= 0 or (term.tie and term.normalize != "rank"):
            raise ConfigError(
                f"uae.reward.terms[{index}].tie", f"must be at least 0, and needs normalize=rank, got {term.tie}"
            )
    if 0 < config.uae.reward.tripwire_window < 3:
        raise ConfigError("uae.reward.tripwire_window", "a trend needs at least 3 steps; 0 switches it off")
    summed, watched = term_specs(config)
    check_specs(summed, watched, "uae.reward", config.uae.reward.timeout_s)
    if all(is_groupwise(spec) for spec in summed):
        raise ConfigError(
            "uae.reward.terms",
            "needs a term that is not groupwise: in validation a picture has one reconstruction, and nothing to prefer",
        )
