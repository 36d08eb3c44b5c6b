# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations as `python -m verl.trainer.main_ppo` composes them, hundreds of them in a minute."""

from __future__ import annotations

import functools
import pickle
from typing import Any, ClassVar
from unittest import mock

import yaml
from hydra import compose, initialize_config_module
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

import verl_uae.plugin  # noqa: F401

#: verl's, where Hydra finds its configuration and by our search path ours.
MODULE = "verl.trainer.config"


def composed(*overrides: str, name: str = "uae_g4u") -> DictConfig:
    """The configuration of that name with the overrides, of its own.

    Reading and merging the files takes Hydra a second, setting values takes it milliseconds; so the first is done once
    for each choice of files.
    """
    with initialize_config_module(MODULE, version_base=None):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        if any(override.is_hydra_override() for override in parsed):
            return compose(name, overrides=list(overrides))
        files = [loader.repository.group_exists(override.key_or_group) for override in parsed]
        chosen = tuple(str(override.input_line) for override, file in zip(parsed, files, strict=True) if file)
        config = pickle.loads(_files(name, chosen))
        values = [override for override, file in zip(parsed, files, strict=True) if not file]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


def copied(config: DictConfig) -> DictConfig:
    """A copy of its own; pickle makes it in a third of the time that `copy.deepcopy` takes."""
    return pickle.loads(pickle.dumps(config))


class _Repository(CachingConfigRepository):
    """Hydra's, which forgets with each composition what it has read; a composition changes what it is given."""

    known: ClassVar[dict[str, bytes]] = {}

    def load_config(self, config_path: str) -> Any:
        if config_path not in self.known:
            self.known[config_path] = pickle.dumps(self.delegate.load_config(config_path))
        if config_path not in self.cache:
            self.cache[config_path] = pickle.loads(self.known[config_path])
        return self.cache[config_path]


@functools.cache
def _files(name: str, chosen: tuple[str, ...]) -> bytes:
    # libyaml reads the same in a quarter of the time; OmegaConf takes the loader that yaml has under this name.
    faster = mock.patch.object(yaml, "SafeLoader", yaml.CSafeLoader)
    with faster, mock.patch.object(config_loader_impl, "CachingConfigRepository", _Repository):
        return pickle.dumps(compose(name, overrides=list(chosen)))
