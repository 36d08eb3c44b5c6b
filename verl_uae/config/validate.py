# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses impossible settings before Ray starts, naming the Hydra key."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
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
from verl_uae.config.path_keys import resolve_paths, validate_models, validate_paths, validate_sizes
from verl_uae.config.run_lock import check_free
from verl_uae.config.schema import UAEConfig
from verl_uae.config.validate_run import validate_run
from verl_uae.config.validate_verl import validate_verl
from verl_uae.errors import ConfigError, UAEError
from verl_uae.settings import check_keys, check_values, unread_overrides

_VALIDATORS: Mapping[str, tuple[Callable[[DictConfig], None], ...]] = {
    "pretrain": (pretrain.validate,),
    "cold_start": (pretrain.validate, cold_start.validate),
    "g4u": (g4u.validate,),
    "u4g": (u4g.validate,),
    "unified": (g4u.validate, u4g.validate, unified.validate),
}


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
        for key in unread_overrides(UAEConfig, config.uae.stage, config.hydra.overrides.task):
            sys.stderr.write(f"verl_uae: warning: {key} is set, but stage {config.uae.stage} does not read it\n")


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
