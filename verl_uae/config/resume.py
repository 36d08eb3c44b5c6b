# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run would go on from, and whether as many ranks read it as wrote it."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import DictConfig

from verl_uae.checkpoints.names import STEP_PREFIX, step_of
from verl_uae.checkpoints.step import is_complete
from verl_uae.errors import ConfigError
from verl_uae.paths import existing_folder, expand

_KEY = "trainer.resume_from_path"

#: What verl and we call the shards of FSDP. Megatron's name no number of ranks, and are read by any.
_SHARD = re.compile(r"\w+_world_size_(\d+)_rank_(\d+)\.pt", re.ASCII)


def validate_resume(config: DictConfig) -> None:
    """Refuse a checkpoint that this run could not read; looks at names of files alone.

    Raises:
        ConfigError: naming the key, the numbers of ranks, and what helps.
    """
    folder = resumed_folder(config)
    if folder is None:
        return
    trainer = config.trainer
    ranks = trainer.n_gpus_per_node * trainer.nnodes
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = [match for path in part.iterdir() if (match := _SHARD.fullmatch(path.name))]
        written = {int(match[1]) for match in found}
        if not written or ranks in written:
            continue
        raise ConfigError(
            "trainer.n_gpus_per_node",
            f"{part} was written by {' or '.join(map(str, sorted(written)))} ranks, this run has {ranks} "
            f"({trainer.n_gpus_per_node} x {trainer.nnodes} nodes); use as many, or `verl-uae export {folder}` and "
            "start a new run from what it writes, or set trainer.resume_mode=disable",
        )


def resumed_folder(config: DictConfig) -> Path | None:
    """The step folder that the run will load, None where it starts from the beginning.

    Raises:
        ConfigError: ``trainer.resume_from_path`` is no step folder that is there.
    """
    trainer = config.trainer
    if trainer.resume_mode == "resume_path":
        path = trainer.resume_from_path
        if not path or step_of(expand(path)) is None:
            raise ConfigError(_KEY, f"must be a folder {STEP_PREFIX}<N>, got {path}")
        return existing_folder(path, _KEY)
    if trainer.resume_mode != "auto":
        return None
    root = expand(trainer.default_local_dir)
    numbered = [(step, path) for path in root.glob(f"{STEP_PREFIX}*") if (step := step_of(path)) is not None]
    return next((path for _, path in sorted(numbered, reverse=True) if is_complete(path)), None)
