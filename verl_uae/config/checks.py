# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of single keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.text import is_number


def check_choices(config: DictConfig, choices: Mapping[str, Sequence[str]]) -> None:
    """Raise `ConfigError` for the first key whose value is none of its choices."""
    for key, allowed in choices.items():
        value = OmegaConf.select(config, key)
        if value not in allowed:
            raise ConfigError(key, f"must be one of {', '.join(allowed)}, got {value!r}")


def check_minimum(config: DictConfig, minimum: Mapping[str, tuple[float, bool]]) -> None:
    """Raise `ConfigError` for the first key that is no number, or below its smallest value, or at it where that is not
    allowed."""
    for key, (smallest, inclusive) in minimum.items():
        value = OmegaConf.select(config, key)
        possible = is_number(value)
        if not (possible and (value > smallest or (inclusive and value == smallest))):
            raise ConfigError(key, f"must be {'at least' if inclusive else 'above'} {smallest}, got {value!r}")


def check_whole(config: DictConfig, smallest: Mapping[str, int], hint: str = "") -> None:
    """Raise `ConfigError`, with the hint, for the first key that is no whole number, or below its smallest value."""
    for key, least in smallest.items():
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(key, f"must be a whole number, at least {least}{hint}, got {value!r}")
