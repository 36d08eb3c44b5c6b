# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Loading a user's Python source, announced.

A reward file is code and runs with all the rights of the process: naming it in the configuration is the decision to
trust it. What is done here is to make that decision visible (resolved path and SHA-256 in the log, and the bytes that
were hashed are the bytes that run) and to refuse what is nearly always a mistake: a URL, and a file that everybody on
the machine may rewrite. Nothing here makes a malicious file safe.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.abc
import importlib.util
import logging
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from verl_uae.errors import ConfigError
from verl_uae.paths import expand, is_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PACKAGE_PREFIX = "pkg://"


@dataclass(frozen=True, slots=True)
class Source:
    """A loaded module and where it came from."""

    module: ModuleType
    path: str
    """Resolved path of the file; the module's name where it has none."""
    sha256: str
    """Of the file's bytes; empty where there is no file."""


def load_source(reference: str, key: str) -> Source:
    """Import a module by file path (``my_file.py``), ``pkg://my.module`` or dotted name (``my.module``).

    Loading the same unchanged file twice gives the same module, so its registrations run once. A file is not put on
    ``sys.path``: it cannot import its neighbours by bare name.

    Args:
        reference: which module.
        key: configuration key it came from, for errors.

    Raises:
        ConfigError: where it is a URL, is missing, is world-writable or in a folder that is, or fails to import.
    """
    if reference.startswith(_PACKAGE_PREFIX):
        source = _load_package(reference[len(_PACKAGE_PREFIX) :].replace("/", "."), key)
    elif is_url(reference):
        raise ConfigError(key, f"{reference!r} is a URL; give the path of a local file or pkg://a.module")
    elif reference.endswith(".py") or "/" in reference or reference.startswith("~"):
        source = _load_file(reference, key)
    else:
        source = _load_package(reference, key)
    _announce(source.path, source.sha256)
    return source


@functools.cache
def _announce(path: str, sha256: str) -> None:
    # Once a process: a term is checked, asked for its bounds and built.
    logger.info("loaded user code %s (sha256 %s)", path, sha256 or "unknown: no file")


class _BytesLoader(importlib.abc.SourceLoader):
    """Runs the given bytes; never a cached ``.pyc``, and never a file changed since it was hashed."""

    def __init__(self, path: str, data: bytes) -> None:
        self._path = path
        self._data = data

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        return self._data


def _load_file(reference: str, key: str) -> Source:
    try:
        path = expand(reference).resolve()
        data = path.read_bytes()
        mode = path.stat().st_mode
        # Who may write into a folder may put another file in its place; with the sticky bit only its owner may.
        open_to_all = stat.S_IWOTH | stat.S_ISVTX
        folders = [folder for folder in path.parents if folder.stat().st_mode & open_to_all == stat.S_IWOTH]
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL; RuntimeError: no home for a ~user
        raise ConfigError(key, f"cannot read {reference!r}: {error}") from error
    if mode & stat.S_IWOTH:
        raise ConfigError(key, f"{path} is writable by everyone on this machine; run chmod o-w on it first")
    if folders:
        raise ConfigError(
            key,
            f"{path} lies in {folders[0]}, which is writable by everyone on this machine; run chmod o-w on it first",
        )
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"verl_uae_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{sha256[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_loader(name, _BytesLoader(str(path), data), origin=str(path))
        assert spec is not None and spec.loader is not None  # The loader is given.
        loader, module = spec.loader, importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            _import(lambda: loader.exec_module(module), str(path), key)
        except ConfigError:
            del sys.modules[name]
            raise
    return Source(sys.modules[name], str(path), sha256)


def _load_package(name: str, key: str) -> Source:
    module = _import(lambda: importlib.import_module(name), f"module {name!r}", key)
    file = getattr(module, "__file__", None)
    if file is None:
        return Source(module, name, "")
    return Source(module, str(Path(file).resolve()), hashlib.sha256(Path(file).read_bytes()).hexdigest())


def _import(run: Callable[[], T], what: str, key: str) -> T:
    try:
        return run()
    # A fault boundary: a user's module may raise anything while it is imported, or leave with sys.exit().
    except (Exception, SystemExit) as error:
        raise ConfigError(key, f"{what} failed to import: {type(error).__name__}: {error}") from error
