# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses settings of the run as a whole: paths, resuming, and what a stage would not do although it is asked to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.config.checks import check_choices
from verl_uae.errors import ConfigError
from verl_uae.formats.names import step_of

_CHOICES = {"trainer.resume_mode": ("disable", "auto", "resume_path")}

STAGES = ("pretrain", "cold_start", "g4u", "u4g", "unified")

#: Stages with a captioner that learns, and so with a caption server and decoder workers.
CAPTIONING = ("g4u", "unified")

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
    _validate_resume(config.trainer)
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


def validate_paths(config: DictConfig) -> None:
    """Check that local files and folders are there; other names may be hub ids.

    Raises:
        ConfigError: naming the first key whose file or folder is missing.
    """
    for key, path in _paths(config):
        if is_local(path) and not Path(path).expanduser().exists():
            raise ConfigError(key, f"there is no {path}")


def is_local(path: str) -> bool:
    """Whether a path cannot be a hub id, which is a name or two joined by a slash, nor lie elsewhere."""
    return "://" not in path and (path.startswith(("/", ".", "~")) or path.count("/") > 1)


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


def _validate_resume(trainer: DictConfig) -> None:
    if trainer.resume_mode != "resume_path":
        return
    path = trainer.resume_from_path
    if step_of(path or "") is None:
        raise ConfigError("trainer.resume_from_path", f"must be a folder global_step_<N>, got {path}")
    if not Path(path).is_dir():
        raise ConfigError("trainer.resume_from_path", f"there is no folder {path}")


def _paths(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Keys of files and folders, with their values; patterns of tar shards are left to the reader of shards."""
    yield "actor_rollout_ref.model.path", str(config.actor_rollout_ref.model.path)
    yield "uae.conditioner.path", str(config.uae.conditioner.path)
    for key in ("data.train_files", "data.val_files"):
        files = OmegaConf.select(config, key)
        for file in files if OmegaConf.is_list(files) else [files]:
            if str(file).endswith(".parquet"):
                yield key, str(file)
