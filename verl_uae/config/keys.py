# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which keys there are under ``uae.``, by the schema. One that is unknown is refused with the closest that is known."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable

from omegaconf import DictConfig

from verl_uae.config.schema import UAEConfig
from verl_uae.errors import ConfigError

#: An override of Hydra's grammar whose key is one of ours: set, add, force or delete.
_OVERRIDE = re.compile(r"(?:\+{1,2}|~)?uae((?:\.\w+)+)(?:=|$)")


def check_keys(section: DictConfig, schema: type = UAEConfig, path: str = "uae") -> None:
    """Refuse keys of a composed section that the schema does not have: ``+uae.x=1`` gets past Hydra's own check.

    Raises:
        ConfigError: naming the first one.
    """
    for name in map(str, section):
        inner = _inner(schema, path, name)
        if inner is not None:
            check_keys(section[name], inner, f"{path}.{name}")


def check_overrides(words: Iterable[str]) -> None:
    """The same for the words of a command line, before Hydra sees them: its advice is to add the unknown key.

    Raises:
        ConfigError: naming the first one.
    """
    for word in words:
        if not (override := _OVERRIDE.match(word)):
            continue
        schema: type | None = UAEConfig
        path = "uae"
        for name in override[1].split(".")[1:]:
            if schema is None:
                # Inside a list, or a section whose keys are the user's.
                break
            schema, path = _inner(schema, path, name), f"{path}.{name}"


def _inner(schema: type, path: str, name: str) -> type | None:
    """The schema of a section within another; None for what is no section."""
    fields = {field.name: field for field in dataclasses.fields(schema)}
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f", did you mean {path}.{close[0]}?" if close else f"; known keys: {', '.join(fields)}"
        raise ConfigError(f"{path}.{name}", f"unknown key{hint}")
    kind = fields[name].default_factory
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
