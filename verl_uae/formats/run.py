# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a training checkpoint and its run say: completeness, the composed configuration, the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.formats.card import Card, data_digests, flat

#: Written last into a step folder by the trainers (verl_uae/trainer/checkpoint.py).
MARKER = "uae_complete.json"

#: Where Hydra leaves the composed configuration, from the folder of the checkpoints.
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


def check_complete(checkpoint: Path) -> int:
    """Check that a step folder was written to its end; returns its step.

    Raises:
        CheckpointError: naming the marker, or the first file that is missing or has another size.
    """
    marker = checkpoint / MARKER
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        files, step = dict(content["files"]), int(content["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(marker, f"not a complete checkpoint: {error!r}") from error
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(path, f"missing or not of the {size} bytes that {MARKER} names")
    return step


class RunConfig:
    """The composed configuration of a run; every value may be unknown.

    Args:
        config: None if there is none.
    """

    def __init__(self, config: DictConfig | None = None) -> None:
        self._config = config

    @classmethod
    def of(cls, checkpoint: Path, path: str | None = None) -> RunConfig:
        """Load it from ``path``, else from where Hydra leaves it near the checkpoints.

        Raises:
            ConfigError: ``path`` is not a yaml file of settings.
        """
        found = [checkpoint.absolute().parent / place for place in _PLACES]
        chosen = Path(path) if path else next((place for place in found if place.is_file()), None)
        if chosen is None:
            return cls()
        try:
            config = OmegaConf.load(chosen)
        except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError("--run-config", f"{chosen} cannot be read: {error}") from error
        if not isinstance(config, DictConfig):
            raise ConfigError("--run-config", f"{chosen} holds no settings")
        return cls(config)

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
        constants = dict(flat(settings, "uae"))
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

    def _data_files(self) -> list[str]:
        files: list[str] = []
        for key in ("data.train_files", "data.val_files"):
            value = self.get(key)
            files += [value] if isinstance(value, str) else list(value or [])
        return files
