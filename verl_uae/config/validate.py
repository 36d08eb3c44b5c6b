# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses impossible settings before Ray starts, naming the Hydra key.

verl's own configuration has no types: a text where a number belongs, a fraction of a GPU or an unknown precision passes
it, and fails in the middle of the set-up, or not at all. So the keys of verl that a run depends on are checked too.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

import verl_uae.chain.config as chain
import verl_uae.reward.config as reward
import verl_uae.stages.cold_start.config as cold_start
import verl_uae.stages.g4u.config as g4u
import verl_uae.stages.pretrain.config as pretrain
import verl_uae.stages.u4g.config as u4g
import verl_uae.stages.unified.config as unified
from verl_uae.config import STAGES
from verl_uae.config.condition_length import resolve_length
from verl_uae.config.path_keys import resolve_paths, validate_models, validate_paths, validate_sizes, validate_targets
from verl_uae.config.run_folder import check_free, validate_resume
from verl_uae.config.schema import UAEConfig
from verl_uae.errors import ConfigError, UAEError
from verl_uae.settings import (
    CAPTIONING,
    check_choices,
    check_keys,
    check_minimum,
    check_values,
    check_whole,
    unread_overrides,
)

_VALIDATORS: Mapping[str, tuple[Callable[[DictConfig], None], ...]] = {
    "pretrain": (pretrain.validate,),
    "cold_start": (pretrain.validate, cold_start.validate),
    "g4u": (g4u.validate,),
    "u4g": (u4g.validate,),
    "unified": (unified.validate, g4u.validate, u4g.validate),
}


def check_all(config: DictConfig) -> None:
    """All that a training command checks before Ray starts; paths and what is left open are resolved in place.

    Args:
        config: the whole composed configuration, Hydra's part included.

    Raises:
        UAEError: something is impossible, naming the key.
    """
    _validate_sections(config)
    resolve_paths(config)
    validate(config)
    check_free(Path(config.trainer.default_local_dir))
    u4g.validate_engine(config)
    validate_models(config)
    resolve_length(config)
    validate_sizes(config)
    validate_targets(config)
    g4u.validate_placement(config)


def _validate_sections(config: DictConfig) -> None:
    """A section that is a single value has none of the keys that everything else reads."""
    for name in ("uae", "data", "actor_rollout_ref", "reward", "algorithm", "trainer", "ray_kwargs", "transfer_queue"):
        if OmegaConf.is_missing(config, name) or not OmegaConf.is_dict(config.get(name)):
            raise ConfigError(name, f"is a section, got {config.get(name)}: set its keys, as in {name}.KEY=VALUE")


class ValidateCallback(Callback):
    """Hydra callback of our configs: runs in the driver before the job."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Resolve paths and validate, or leave with exit code 2; name what is set and has no effect."""
        try:
            check_all(config)
        except UAEError as error:
            # Hydra turns an exception of a callback into a warning and goes on.
            sys.stderr.write(f"verl_uae: impossible setting: {error}\n")
            raise SystemExit(2) from error
        except Exception as error:
            # Fault boundary, for the same reason: a check that breaks must not let through what it should refuse.
            traceback.print_exc()
            sys.stderr.write(f"verl_uae: the settings could not be checked: {type(error).__name__}: {error}\n")
            raise SystemExit(2) from error
        for line in unread(config):
            sys.stderr.write(f"verl_uae: warning: {line}\n")


def unread(config: DictConfig) -> list[str]:
    """What the overrides of a command set without effect, a line each.

    Args:
        config: the whole composed configuration, Hydra's part included.
    """
    stage, words = config.uae.stage, config.hydra.overrides.task
    readers = {f"stage {stage}": unread_overrides(UAEConfig, stage, words)}
    readers["uae.unified.schedule=joint"] = unified.unread_in_joint(config, words)
    return [f"{key} is set, but {reader} does not read it" for reader, keys in readers.items() for key in keys]


def validate(config: DictConfig) -> None:
    """Check everything that can be checked without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    stage = config.uae.stage
    check_keys(config.uae, UAEConfig)
    check_values(config.uae, UAEConfig, stage)
    validate_verl(config)
    for key in ("data.train_files", "data.val_files"):
        if not OmegaConf.select(config, key):
            raise ConfigError(key, "is not set: a parquet file, for example from `verl-uae data pack FOLDER --out DIR`")
    validate_run(config)
    for section in (chain.validate, reward.validate, *_VALIDATORS[stage]):
        section(config)
    validate_paths(config)


_CHOICES = {"trainer.resume_mode": ("disable", "auto", "resume_path")}


#: Keys that only decoder workers read -> what is allowed without them.
_DECODER_WORKERS: dict[str, Any] = {
    "uae.decoder.schedule": "phased",
    "uae.decoder.pool": "colocated",
    "uae.decoder.seeds_per_caption": 1,
}


def validate_run(config: DictConfig) -> None:
    """Check what every stage takes from verl's trainer.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    _validate_stage(config)
    check_choices(config, _CHOICES)
    validate_resume(config)
    if config.actor_rollout_ref.actor.checkpoint.get("async_save", False):
        raise ConfigError(
            "actor_rollout_ref.actor.checkpoint.async_save",
            "a folder that is still being written cannot be marked complete, so no run could resume from it; use false",
        )
    if config.trainer.get("default_hdfs_dir") and config.uae.stage != "g4u":
        raise ConfigError("trainer.default_hdfs_dir", "the trained decoder is saved to trainer.default_local_dir alone")
    # Imported here: the schema is needed in places that must not pay for torch.
    from verl_uae.data.rows import CheckSettings

    CheckSettings.from_config(config.data)
    if config.critic.get("enable"):
        raise ConfigError("critic.enable", "advantages are relative to the group; no stage has a critic")
    if config.reward.reward_model.enable:
        raise ConfigError("reward.reward_model.enable", "rewards come from the decoder workers; use uae.reward.terms")
    check_whole(config, {"trainer.save_freq": -1, "trainer.test_freq": -1}, " (-1 for none)")
    if config.trainer.total_training_steps is None:
        check_whole(config, {"trainer.total_epochs": 1})
    if config.trainer.get("max_actor_ckpt_to_keep") is not None:
        # A number below 0 would count from the other end.
        check_whole(config, {"trainer.max_actor_ckpt_to_keep": 1}, " (or null for all steps)")
    if config.data.truncation != "error":
        raise ConfigError("data.truncation", f"{config.data.truncation!r} could cut through an image; use error")


def _validate_stage(config: DictConfig) -> None:
    stage, trainer = config.uae.stage, config.trainer.v1.trainer_mode
    if trainer in {f"uae_{name}" for name in STAGES} and trainer != f"uae_{stage}":
        raise ConfigError(
            "uae.stage", f"is {stage}, the trainer is {trainer}: both are chosen by the config name, not by hand"
        )
    if stage in CAPTIONING:
        return
    model = config.actor_rollout_ref.model
    if model.lora_rank > 0 or model.get("lora_adapter_path") is not None:
        raise ConfigError(
            f"actor_rollout_ref.model.{'lora_rank' if model.lora_rank > 0 else 'lora_adapter_path'}",
            f"stage {stage} puts no adapters on the captioner; give it the model with its adapters multiplied in "
            "(verl-uae export), whose path is actor_rollout_ref.model.path",
        )
    for key, only in _DECODER_WORKERS.items():
        value = OmegaConf.select(config, key)
        if value != only:
            raise ConfigError(key, f"{value}: stage {stage} has no decoder workers; only {only} is possible")


_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

#: Whole numbers -> the smallest.
_WHOLE = {
    "trainer.n_gpus_per_node": 1,
    "trainer.nnodes": 1,
    "data.train_batch_size": 1,
    "data.max_prompt_length": 1,
    "data.max_response_length": 1,
    "data.dataloader_num_workers": 0,
    f"{_ROLLOUT}.n": 1,
    f"{_ROLLOUT}.tensor_model_parallel_size": 1,
    f"{_ROLLOUT}.agent.num_workers": 1,
    f"{_ACTOR}.ppo_mini_batch_size": 1,
    f"{_ACTOR}.ppo_epochs": 1,
}
#: The same for keys that may be null.
_WHOLE_OR_NULL = {
    "trainer.total_training_steps": 1,
    "data.val_batch_size": 1,
    "data.seed": 0,
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": 1,
    f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": 1,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 1,
}
#: Key -> (smallest, whether the smallest itself is allowed).
_NUMBERS = {
    # Log-probabilities are divided by it.
    f"{_ROLLOUT}.temperature": (0, False),
    # Zero is greedy.
    f"{_ROLLOUT}.val_kwargs.temperature": (0, True),
    # A share of the GPU; the rest is checked below.
    f"{_ROLLOUT}.gpu_memory_utilization": (0, False),
    f"{_ACTOR}.kl_loss_coef": (0, True),
    f"{_ACTOR}.optim.lr": (0, True),
    "uae.train.optim.lr": (0, True),
    "uae.cold_start.captioner.optim.lr": (0, True),
}

#: Sections with verl's FSDP settings, and names of precisions in them (verl/utils/torch_dtypes.py).
_ENGINES = (
    f"{_ACTOR}.fsdp_config",
    "actor_rollout_ref.ref.fsdp_config",
    "uae.train.fsdp_config",
    "uae.cold_start.captioner.fsdp_config",
)
_PRECISIONS = ("fp32", "float32", "bf16", "bfloat16", "fp16", "float16")
_PRECISION_KEYS = (
    "model_dtype",
    "dtype",
    "mixed_precision.param_dtype",
    "mixed_precision.reduce_dtype",
    "mixed_precision.buffer_dtype",
)


def validate_verl(config: DictConfig) -> None:
    """Check the numbers and precisions of verl's keys that a run depends on.

    Raises:
        ConfigError: naming the first key that will not do.
    """
    check_whole(config, _WHOLE)
    given = {key: least for key, least in _WHOLE_OR_NULL.items() if OmegaConf.select(config, key) is not None}
    check_whole(config, given)
    check_minimum(config, {key: least for key, least in _NUMBERS.items() if _is_there(config, key)})
    for key, value in _precisions(config):
        if value not in _PRECISIONS:
            raise ConfigError(key, f"must be one of {', '.join(_PRECISIONS)}, got {value!r}")
    share = OmegaConf.select(config, f"{_ROLLOUT}.gpu_memory_utilization")
    if share is not None and share > 1:
        raise ConfigError(f"{_ROLLOUT}.gpu_memory_utilization", f"must be a share of the GPU, at most 1, got {share:g}")
    _validate_shards(config)


def _validate_shards(config: DictConfig) -> None:
    """verl cuts the ranks into groups of ``fsdp_size``: one that leaves ranks over has no mesh, and 0 is divided by."""
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    for section in _ENGINES:
        size = OmegaConf.select(config, f"{section}.fsdp_size")
        if size is None:
            continue
        whole = isinstance(size, int) and not isinstance(size, bool)
        if not whole or size == 0 or (0 < size < ranks and ranks % size):
            reason = f"must be -1, which is all ranks, or divide the {ranks} ranks, got {size!r}"
            raise ConfigError(f"{section}.fsdp_size", reason)


def _precisions(config: DictConfig) -> Iterator[tuple[str, Any]]:
    for section in _ENGINES:
        for name in _PRECISION_KEYS:
            value = OmegaConf.select(config, f"{section}.{name}")
            if value is not None:
                yield f"{section}.{name}", value


def _is_there(config: DictConfig, key: str) -> bool:
    parent = OmegaConf.select(config, key.rpartition(".")[0])
    return isinstance(parent, DictConfig) and key.rpartition(".")[2] in parent
