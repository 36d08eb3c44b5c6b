# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses impossible settings of the supervised stages: ``uae.pretrain`` and ``uae.cold_start``."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.config.checks import check_choices, check_minimum
from verl_uae.config.path_keys import is_shard
from verl_uae.config.validate_policy import validate_decoder_training
from verl_uae.errors import ConfigError

_CHOICES = {
    "uae.pretrain.density.name": ("logit_normal", "mode", "cosmap", "sigma_sqrt", "uniform"),
    "uae.cold_start.states": ("text_only", "in_context"),
    "uae.cold_start.backbone": ("clip", "dinov2", "dinov3", "siglip2", "efficientnet_lite0"),
}
_MINIMUM = {
    "uae.pretrain.density.logit_std": (0, False),
    "uae.pretrain.density.mode_scale": (-1, True),
    "uae.pretrain.condition_dropout": (0, True),
    "uae.pretrain.bucket_step": (1, True),
    "uae.pretrain.max_aspect": (1, True),
    "uae.pretrain.validation_levels": (1, True),
    "uae.cold_start.num_steps": (1, True),
    "uae.cold_start.guidance": (1, True),
    "uae.cold_start.semantic_weight": (0, True),
    "uae.cold_start.caption_weight": (0, True),
    "uae.cold_start.encoder.lora.rank": (0, True),
    "uae.cold_start.encoder.lora.alpha": (1, True),
}
_LARGEST_MODE_SCALE = 2.0 / (math.pi - 2.0)


def is_shards(files: Any) -> bool:
    """Whether data files are webdataset tar shards."""
    names = list(files) if OmegaConf.is_list(files) or isinstance(files, list | tuple) else [files]
    return bool(names) and all(is_shard(str(name)) for name in names)


def validate_supervised(config: DictConfig) -> None:
    """Check what can be checked without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    check_choices(config, _CHOICES)
    check_minimum(config, _MINIMUM)
    validate_decoder_training(config)
    _validate_pretrain(config)
    if config.uae.stage == "cold_start":
        _validate_cold_start(config)
    policy, ranks = config.uae.policy, config.trainer.n_gpus_per_node * config.trainer.nnodes
    if config.data.train_batch_size % (ranks * policy.micro_batch_size):
        raise ConfigError(
            "uae.policy.micro_batch_size",
            f"{policy.micro_batch_size} must divide the {config.data.train_batch_size / ranks:g} pairs a rank has "
            f"(data.train_batch_size={config.data.train_batch_size} / {ranks} ranks)",
        )
    if is_shards(config.data.train_files) and not config.trainer.total_training_steps:
        raise ConfigError("trainer.total_training_steps", "is needed for tar shards: a stream has no length")
    if is_shards(config.data.val_files):
        raise ConfigError("data.val_files", "must be parquet: validation goes through all of it in order")


def _validate_pretrain(config: DictConfig) -> None:
    decoder, pretrain = config.uae.decoder, config.uae.pretrain
    if pretrain.density.mode_scale > _LARGEST_MODE_SCALE:
        raise ConfigError("uae.pretrain.density.mode_scale", f"must be at most {_LARGEST_MODE_SCALE:.4f}")
    if pretrain.condition_dropout >= 1:
        raise ConfigError("uae.pretrain.condition_dropout", "must be below 1: no caption would be learnt")
    if pretrain.shift is not None and pretrain.shift <= 0:
        raise ConfigError("uae.pretrain.shift", f"must be above 0 or null, got {pretrain.shift}")
    if not pretrain.buckets:
        return
    if decoder.height != decoder.width:
        raise ConfigError(
            "uae.decoder.width",
            f"{decoder.width} is not the height {decoder.height}: buckets lie around a square; set "
            "uae.pretrain.buckets=false for one size",
        )
    if decoder.height % pretrain.bucket_step:
        raise ConfigError("uae.pretrain.bucket_step", f"{pretrain.bucket_step} must divide {decoder.height}")


def _validate_cold_start(config: DictConfig) -> None:
    cold_start = config.uae.cold_start
    steps = cold_start.gradient_steps
    if steps is not None and not 1 <= steps <= cold_start.num_steps:
        raise ConfigError(
            "uae.cold_start.gradient_steps", f"must lie in [1, {cold_start.num_steps}] or be null, got {steps}"
        )
    decoder = cold_start.train_decoder or config.uae.policy.train_projector
    if not decoder and not cold_start.encoder.train:
        raise ConfigError("uae.cold_start.encoder.train", "nothing is trained: neither encoder, projector nor MM-DiT")
    if cold_start.semantic_weight == 0 and (decoder or cold_start.caption_weight == 0):
        raise ConfigError("uae.cold_start.semantic_weight", "is 0: the decoder would learn nothing")
    if cold_start.encoder.train and config.uae.conditioner.path != config.actor_rollout_ref.model.path:
        raise ConfigError(
            "uae.conditioner.path", "must be actor_rollout_ref.model.path: the trained encoder conditions"
        )
    engine = cold_start.encoder.fsdp_config
    if engine.strategy not in ("fsdp", "fsdp2"):
        raise ConfigError(
            "uae.cold_start.encoder.fsdp_config.strategy", f"must be one of fsdp, fsdp2, got {engine.strategy!r}"
        )
    if engine.ulysses_sequence_parallel_size != 1:
        raise ConfigError(
            "uae.cold_start.encoder.fsdp_config.ulysses_sequence_parallel_size",
            "every rank has pairs of its own; use 1",
        )
    # Imported here: the schema is needed in places that must not pay for torch.
    from verl_uae.reward.registry import get_reward

    params: Any = OmegaConf.to_container(cold_start.backbone_params, resolve=True)
    get_reward(cold_start.backbone).check_params(params, "uae.cold_start.backbone_params")
    if config.uae.pretrain.cache_dir is not None:
        raise ConfigError("uae.pretrain.cache_dir", "conditions of a trained encoder change; use null in this stage")
