# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One run at a time in an output folder: two would remove and overwrite each other's checkpoints.

The lock belongs to the trainer's process and is gone when that ends, however it ends, so a dead run is resumed without
cleaning up. It is a POSIX record lock: it holds within a machine, and between machines where the shared file system
carries such locks (NFS and Lustre do unless mounted without). Where it carries none the run goes on with a warning.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from verl_uae.checkpoints.names import LOCK
from verl_uae.errors import ConfigError

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
