# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses settings of the run as a whole: paths, resuming, and what a stage would not do although it is asked to."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.config import STAGES
from verl_uae.config.checks import check_choices, check_whole
from verl_uae.config.resume import validate_resume
from verl_uae.errors import ConfigError
from verl_uae.settings import CAPTIONING

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
    check_whole(config, {"trainer.save_freq": -1}, " (-1 for none)")
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
    for key, only in _DECODER_WORKERS.items():
        value = OmegaConf.select(config, key)
        if value != only:
            raise ConfigError(key, f"{value}: stage {stage} has no decoder workers; only {only} is possible")
