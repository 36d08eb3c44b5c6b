# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where tar shards come from: local files and http(s) URLs, and nothing that runs a command."""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from verl_uae.errors import ConfigError, DataError
from verl_uae.paths import expand, is_url

_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")


def open_url(url: str) -> IO[bytes]:
    """Open a local path, or an http(s) URL through webdataset in secure mode (a ``curl`` process).

    Raises:
        ConfigError: if webdataset is not installed.
        OSError: if it cannot be opened.
    """
    if not url.startswith(("http://", "https://")):
        return open(url, "rb")
    webdataset()
    from webdataset.gopen import gopen

    return gopen(url)


def webdataset() -> Any:
    """The webdataset package in secure mode, in which it runs no ``pipe:`` URL and unpickles nothing.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import webdataset as package
        import webdataset.tariterators
        import webdataset.utils
    except ImportError as error:
        raise ConfigError("data", f"tar shards need webdataset (pip install 'webdataset>=1.0.2'): {error}") from error
    package.utils.enforce_security = True
    return package


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Shards of brace patterns, globs and http(s) URLs, by name, each once.

    Raises:
        ConfigError: for a URL where ``curl`` is missing.
        DataError: for a pattern without files, or another kind of URL.
    """
    webdataset()
    from braceexpand import braceexpand

    shards: set[str] = set()
    for pattern in patterns:
        # A file that is there is no pattern, whatever braces and brackets its name has.
        if not is_url(pattern) and (file := expand(pattern)).is_file():
            shards.add(str(file))
            continue
        try:
            names = list(braceexpand(str(pattern)))
        except ValueError as error:
            raise DataError(pattern, None, f"braces do not match: {error}") from error
        for name in names:
            shards.update(_expanded(name))
    if not shards:
        raise DataError("<no shard>", None, "at least one tar shard is needed")
    return sorted(shards)


def _expanded(name: str) -> list[str]:
    if name.startswith(("http://", "https://")):
        if shutil.which("curl") is None:
            raise ConfigError("data.train_files", "shards behind a URL are read with curl, which is not installed")
        return [name]
    if is_url(name) or (_SCHEME.match(name) and not name.startswith("file://")) or name == "-":
        raise DataError(name, None, "refused: shards are local files or http(s) URLs")
    files = sorted(file for file in glob.glob(str(expand(name)), recursive=True) if Path(file).is_file())
    if not files:
        raise DataError(name, None, "is a folder" if expand(name).is_dir() else "no such file")
    return files
