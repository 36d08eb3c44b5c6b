# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a training checkpoint and its run say: completeness, the composed configuration, the model card."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_uae.checkpoints.card import Card, data_digests, flat
from verl_uae.checkpoints.names import RUN_CONFIG
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.settings import RENAMED, is_read

#: Stands in a saved configuration in place of a secret.
HIDDEN = "***"

#: Keys whose text is a secret, by their end; names of environment variables may say it with less.
_SECRET_KEY = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|pwd|credentials?|authorization|cookie|dsn"
    r"|(api|access|private|secret|auth)[_-]?key)$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"KEY|SECRET|PASSW|CREDENTIAL|COOKIE|TOKEN$|(^|_)(TOKENS?|PASS|PWD|AUTH|DSN)($|_)", re.IGNORECASE
)
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")

#: A shorter value of a variable is no secret, but may well be a part of other texts.
_SHORTEST_SECRET = 8

#: Where Hydra leaves the composed configuration, from the folder of the checkpoints: of a run whose step folders do not
#: have it.
_PLACES = ("hydra/.hydra/config.yaml", "../hydra/.hydra/config.yaml", ".hydra/config.yaml", "../.hydra/config.yaml")

#: Settings beside ``uae`` that belong on the card.
_KEYS = (
    "data.train_batch_size",
    "data.max_response_length",
    "trainer.total_training_steps",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.use_kl_loss",
    "actor_rollout_ref.actor.kl_loss_coef",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
)


class RunConfig:
    """The composed configuration of a run; every value may be unknown.

    Args:
        config: None if there is none.
    """

    def __init__(self, config: DictConfig | None = None) -> None:
        self._config = config

    @classmethod
    def of(cls, checkpoint: Path, path: str | None = None) -> RunConfig:
        """Load it from ``path``, else from the step folder, else from where Hydra leaves it near the checkpoints.
        Raises `ConfigError`: ``path`` is not a yaml file of settings; `CheckpointError`: the file in the step folder,
        or Hydra's, is none."""
        if path:
            try:
                return cls(_loaded(Path(path)))
            except CheckpointError as error:
                raise ConfigError("--run-config", str(error)) from error
        own = checkpoint.absolute()
        found = (place for place in (own / RUN_CONFIG, *(own.parent / place for place in _PLACES)) if place.is_file())
        chosen = next(found, None)
        return cls() if chosen is None else cls(_loaded(chosen))

    @property
    def known(self) -> bool:
        """Whether there is one."""
        return self._config is not None

    def get(self, key: str) -> Any:
        """A value with interpolations resolved; None if unknown."""
        if self._config is None:
            return None
        try:
            value = OmegaConf.select(self._config, key)
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise ConfigError(key, f"cannot be resolved: {error}") from error

    def card(self, title: str, origin: str, base_models: Mapping[str, str], evaluation: Mapping[str, float]) -> Card:
        """The model card of an exported checkpoint."""
        settings = self.get("uae") or {}
        rewards = (settings.get("reward") or {}).pop("terms", None) or []
        from verl_uae.config.schema import UAEConfig

        stage = str(settings.get("stage"))
        constants = {key: value for key, value in flat(settings, "uae") if is_read(UAEConfig, stage, key)}
        constants.update((key, self.get(key)) for key in _KEYS if self.get(key) is not None)
        return Card(
            title=title,
            origin=origin,
            base_models=base_models,
            data=data_digests(self._data_files()),
            constants=constants,
            rewards=rewards,
            evaluation=evaluation,
        )

    def files(self, key: str) -> list[str]:
        """Data files that a key names."""
        value = self.get(key)
        return [value] if isinstance(value, str) else [str(name) for name in value or []]

    def _data_files(self) -> list[str]:
        return [*self.files("data.train_files"), *self.files("data.val_files")]


def write_run_config(folder: Path, text: str) -> None:
    """Write the configuration of a run, see :func:`config_text`, into a step folder."""
    (folder / RUN_CONFIG).write_text(text, encoding="utf-8")


def config_text(config: DictConfig) -> str:
    """The whole configuration as yaml: interpolations resolved, secrets hidden as by :func:`without_secrets`."""
    content: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return yaml.safe_dump(without_secrets(content), sort_keys=False, allow_unicode=True)


def without_secrets(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of plain values with its secrets hidden.

    A secret is the text of a key or environment variable that is named like one, the user and password of a URL, and
    wherever it stands the value of such an environment variable of this process.
    """
    values = sorted(
        (value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and _is_secret(value)),
        key=len,
        reverse=True,
    )
    hidden: dict[str, Any] = _without_secrets(content, "", values)
    return hidden


def _is_secret(value: str) -> bool:
    # A path of a key file is no secret, and it may be the start of every path.
    return len(value) >= _SHORTEST_SECRET and not value.startswith(("/", "."))


def _without_secrets(value: Any, key: str, secrets: Iterable[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_secrets(entry, _key_of(name, key), secrets) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_secrets(entry, key, secrets) for entry in value]
    if isinstance(value, str):
        return HIDDEN if value and _SECRET_KEY.search(key) else _plain(value, secrets)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _key_of(name: Any, parent: str) -> str:
    """What tells whether an entry is secret: its name, and for an environment variable what such names say."""
    if parent == "env_vars" and _SECRET_VARIABLE.search(str(name)):
        return "secret"
    return str(name)


def _plain(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _USER_OF_URL.sub(HIDDEN, text)


def _loaded(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    if not isinstance(config, DictConfig):
        raise CheckpointError(path, "holds no settings")
    for old, new in RENAMED.items():
        if OmegaConf.select(config, old, throw_on_resolution_failure=False) is not None:
            raise CheckpointError(
                path, f"is of an older version of verl_uae: {old} is called {new} now; rename it there"
            )
    return config
