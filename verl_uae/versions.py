# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Versions of this package and of others that are installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__version__ = "0.1.0"


def version(package: str) -> str | None:
    """Of a package, by its name on PyPI; None where it is not installed."""
    # Imported here: this file is read in every process of verl.
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of this package and of those that are installed, by name."""
    return {"verl_uae": __version__, **{name: found for name in packages if (found := version(name))}}


def in_one_line(found: Mapping[str, str]) -> str:
    """Versions by name, for people."""
    return ", ".join(map(" ".join, found.items()))
