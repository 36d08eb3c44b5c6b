# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the machine gives a run: devices and their memory, and folders that are written to without being told.

Of the folders, which are Ray's, the home and the caches of Hugging Face, each check returns the folder, or raises with
the variable that moves it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from verl_uae.compat import ray_temp_folder
from verl_uae.errors import ConfigError
from verl_uae.paths import output_folder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What errors say for lack of memory that are no ``torch.OutOfMemoryError``: the CPU allocator, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")

#: Longest path of a Unix socket on Linux, bytes (``sun_path`` of sockaddr_un less its end).
SOCKET_PATH_MAX = 107

#: Key of verl's config for Ray's folder.
RAY_FOLDER_KEY = "ray_kwargs.ray_init._temp_dir"


def checked_device(name: str | None) -> torch.device:
    """A device that computes here; without a name the accelerator, or the host where there is none.

    Raises:
        ConfigError: this machine has none of that name.
    """
    # Heavy: the command line imports this module for every command.
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        # torch goes on with every backend that it knows.
        first = str(error).splitlines()[0].split(". ")[0]
        reason = f"{name}: {first}; give a device that this machine has, such as cpu"
        raise ConfigError("--device", reason) from error
    if device.type == "meta":
        raise ConfigError("--device", "meta holds no numbers; give cpu or an accelerator")
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory did not suffice, so that fewer samples may pass.

    A plain ``MemoryError`` does not count: Python and Pillow raise it over one sample.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


class FittingBatch:
    """How many samples go through a model together; halved where they do not fit, and kept so.

    Args:
        size: samples at a time at first, at least 1.
        what: what they are, for the log.
        key: configuration key of the size, for the log; empty where there is none.
    """

    def __init__(self, size: int, what: str, key: str = "") -> None:
        self.size = size
        self.what = what
        self.key = key
        self._failed = 0

    def map(self, count: int, call: Callable[[slice], T], *, filled: bool = False) -> list[T]:
        """Call with consecutive parts of ``range(count)``, ``size`` at a time.

        Args:
            count: samples in all.
            call: of a part; asked again for its first half where memory does not hold it.
            filled: ``call`` fills every part up to :attr:`size`, so that a short one takes as much memory as any.

        Returns:
            The answers, in order.

        Raises:
            RuntimeError: of ``call``: there is no memory for a single one, or another fault.
        """
        answers: list[T] = []
        start = 0
        while start < count:
            rows = slice(start, min(start + self.size, count))
            try:
                answers.append(call(rows))
            except RuntimeError as error:
                tried = self.size if filled else rows.stop - rows.start
                if not is_out_of_memory(error) or tried == 1:
                    raise
                self._failed = self._failed or tried
                self.size = tried // 2
                # Here the traceback, which holds the tensors of the failed call, is let go.
                continue
            self._report()
            start = rows.stop
        return answers

    def _report(self) -> None:
        """Say once what fits."""
        if self._failed:
            hint = f"; {self.key}={self.size} saves the attempt" if self.key else ""
            logger.warning(
                "out of memory with up to %d %s at a time; %d fit and are used from here on%s",
                *(self._failed, self.what, self.size, hint),
            )
            self._failed = 0


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
        base = folder if temp_dir else os.path.dirname(folder)
        length = len(os.fsencode(base))
        raise ConfigError(
            key,
            f"{base} has {length} bytes, so that the sockets of Ray in it would have paths of {socket}, where Unix "
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
