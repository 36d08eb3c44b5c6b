# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: one run at a time in it, and the checkpoint in it that a run would go on from.

Two runs would remove and overwrite each other's checkpoints. The lock belongs to the trainer's process and is gone when
that ends, however it ends, so a dead run is resumed without cleaning up. It is a POSIX record lock: it holds within a
machine, and between machines where the shared file system carries such locks (NFS and Lustre do unless mounted
without). Where it carries none the run goes on with a warning.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import time
from pathlib import Path
from typing import IO

from omegaconf import DictConfig

from verl_uae.checkpoints.names import LOCK, STEP_PREFIX, step_of
from verl_uae.checkpoints.step import is_complete
from verl_uae.errors import ConfigError
from verl_uae.paths import existing_folder, expand

logger = logging.getLogger(__name__)

KEY = "trainer.default_local_dir"

#: How long a folder is asked for, seconds: processes of a run that has just ended may take a moment.
PATIENCE_S = 5.0

#: Locks of this process by folder. Closing any handle of a locked file would end the lock.
_held: dict[Path, IO[str]] = {}


def check_free(root: Path) -> None:
    """Refuse a folder in which a run goes on; the lock is left as it is.

    Raises:
        ConfigError: naming the process and its machine.
    """
    root = root.absolute()
    if root in _held or not (root / LOCK).is_file():
        return
    try:
        with open(root / LOCK, "r+", encoding="utf-8") as file:
            _lock(file, root)
    except OSError as error:
        raise ConfigError(KEY, f"{root} cannot be written: {error}") from error


def hold(root: Path) -> None:
    """Take an output folder for this process until it ends.

    Raises:
        ConfigError: another run has it, or it cannot be written.
    """
    root = root.absolute()
    if root in _held:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(root / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  it stays open as long as the process lives
    except OSError as error:
        raise ConfigError(KEY, f"{root} cannot be written: {error}") from error
    try:
        _lock(file, root)
    except ConfigError:
        file.close()
        raise
    _held[root] = file
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def _lock(file: IO[str], root: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s: no locks here (%s); nothing keeps a second run out", root, error)
                return
        if time.monotonic() > deadline:
            file.seek(0)
            holder = " ".join(file.read(200).split()) or "another process"
            raise ConfigError(
                KEY, f"{root} is in use by {holder}: give every run a folder of its own, or end that run first"
            )
        time.sleep(0.1)


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
