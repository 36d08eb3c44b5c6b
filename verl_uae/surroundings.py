# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of the machine that a run writes to without being told: Ray's, the home, the caches of Hugging Face.

Each check returns the folder, or raises with the variable that moves it.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from verl_uae.compat import ray_temp_folder
from verl_uae.errors import ConfigError
from verl_uae.paths import output_folder

#: Longest path of a Unix socket on Linux, bytes (``sun_path`` of sockaddr_un less its end).
SOCKET_PATH_MAX = 107

#: Key of verl's config for Ray's folder.
RAY_FOLDER_KEY = "ray_kwargs.ray_init._temp_dir"


def ray_folder(temp_dir: str | None = None) -> str:
    """Where a Ray that this process starts keeps its session; its sockets there must have names of a legal length.

    Args:
        temp_dir: value of `RAY_FOLDER_KEY`; None: Ray's rule, which reads ``RAY_TMPDIR`` and ``TMPDIR``.

    Raises:
        ConfigError: naming what sets the folder: it is too long, or cannot be written.
    """
    set_by = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    key = RAY_FOLDER_KEY if temp_dir else set_by
    folder = temp_dir or ray_temp_folder()
    # Names as in ray/_private/node.py; plasma_store is the longer of the two sockets of a session.
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    socket = len(os.fsencode(os.path.join(os.path.abspath(folder), session, "sockets", "plasma_store")))
    if socket > SOCKET_PATH_MAX:
        # Ray appends its own name to what the variables say.
        given = folder if temp_dir else os.path.dirname(folder)
        length = len(os.fsencode(given))
        raise ConfigError(
            key,
            f"{given} has {length} bytes, so that the sockets of Ray in it would have paths of {socket}, where Unix "
            f"allows {SOCKET_PATH_MAX}; set {key} to a folder of at most {length - (socket - SOCKET_PATH_MAX)} bytes",
        )
    output_folder(folder, key)
    return folder


def home_folder() -> str:
    """The home, where torch, Triton, vLLM and Hugging Face keep caches.

    Raises:
        ConfigError: it is not there, or cannot be written.
    """
    home = os.path.expanduser("~")
    if not os.path.isdir(home):
        raise ConfigError("HOME", f"{home} is not there; set HOME to a folder that can be written")
    output_folder(home, "HOME")
    return home


def hub_cache() -> str:
    """Cache of models of the hub.

    Raises:
        ConfigError: it cannot be written; where ``HF_HUB_OFFLINE`` is set, only if it is not there.
    """
    from huggingface_hub import constants

    folder = str(constants.HF_HUB_CACHE)
    if constants.HF_HUB_OFFLINE and os.path.isdir(folder):
        return f"{folder} (offline)"
    output_folder(folder, "HF_HUB_CACHE or HF_HOME")
    return folder


def data_cache() -> Path:
    """Cache of data files, below the one of `datasets`. One that is there may be read-only, since it may be complete.

    Raises:
        ConfigError: it is not there, and cannot be made.
    """
    folder = data_cache_path()
    if not folder.is_dir():
        output_folder(folder, "HF_DATASETS_CACHE or HF_HOME")
    return folder


def data_cache_path() -> Path:
    """Where that cache is, or would be."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets")).expanduser() / "verl_uae"
