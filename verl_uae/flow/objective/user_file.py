# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A user's file with one more objective, announced like a reward file: it is code and runs with all our rights."""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import logging
import stat
import sys
from pathlib import Path

from verl_uae.errors import ConfigError
from verl_uae.flow.objective.registry import KEY, Objective, get_objective, objective_names
from verl_uae.paths import expand

logger = logging.getLogger(__name__)


class _BytesLoader(importlib.abc.SourceLoader):
    """Runs the bytes that were hashed; never a cached ``.pyc`` or a file changed in between."""

    def __init__(self, path: str, data: bytes) -> None:
        self._path = path
        self._data = data

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        return self._data


def load_objective(path: str, name: str) -> Objective:
    """Run a file and return the objective that it registers as ``name`` with ``@register_objective``.

    The same unchanged file is run once per process. Its path and SHA-256 are logged.

    Args:
        path: a Python file on this machine; not writable by everyone.
        name: the objective in it.

    Raises:
        ConfigError: the file cannot be read, is writable by everyone, fails while it runs, or does not register
            ``name``.
    """
    key = f"{KEY}.path"
    try:
        file = expand(path).resolve()
        data, mode = file.read_bytes(), file.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL; RuntimeError: no home for a ~user
        raise ConfigError(key, f"cannot read {path!r}: {error}") from error
    if mode & stat.S_IWOTH:
        raise ConfigError(key, f"{file} is writable by everyone on this machine; run chmod o-w on it first")
    sha256 = hashlib.sha256(data).hexdigest()
    module = f"verl_uae_objective_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{sha256[:8]}"
    if module not in sys.modules:
        _run(module, file, data, key)
    logger.info("loaded user code %s (sha256 %s)", file, sha256)
    if name not in objective_names() or get_objective(name).function.__module__ != module:
        theirs = [known for known in objective_names() if get_objective(known).function.__module__ == module]
        raise ConfigError(f"{KEY}.name", f"{file} does not register {name!r}; it registers {theirs or 'nothing'}")
    return get_objective(name)


def _run(module: str, file: Path, data: bytes, key: str) -> None:
    spec = importlib.util.spec_from_loader(module, _BytesLoader(str(file), data), origin=str(file))
    assert spec is not None and spec.loader is not None  # The loader is given.
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    try:
        spec.loader.exec_module(loaded)
    # A fault boundary: a user's file may raise anything while it runs, or leave with sys.exit().
    except (Exception, SystemExit) as error:
        del sys.modules[module]
        raise ConfigError(key, f"{file} failed to import: {type(error).__name__}: {error}") from error
