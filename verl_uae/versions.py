# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Versions of installed packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from verl_uae import __version__


def version(package: str) -> str | None:
    """Of a package, by its name on PyPI; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of this package and of those that are installed, by name."""
    return {"verl_uae": __version__, **{name: found for name in packages if (found := version(name))}}
