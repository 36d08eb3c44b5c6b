# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What trainers write into step folders: what they say of their run (the configuration, and how its validation captions
and draws), the trained decoder, and the marker; what the last lines of the command say of the run; and what exports
read of it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_uae.checkpoints.inference import settings_of_run, write_run_settings
from verl_uae.checkpoints.manifest import Card, data_digests, flat
from verl_uae.checkpoints.names import EXPORT_FOLDER, POLICY_FOLDER, RUN_CONFIG
from verl_uae.checkpoints.step import (
    check_resumed,
    clear_exports,
    mark_complete,
    prune_steps,
    repair_tracker,
    step_folder,
)
from verl_uae.checkpoints.summary import RunSummary
from verl_uae.data.schema import PROMPT_COLUMN, most_frequent_prompt
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.settings import RENAMED, is_read

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Variables that verl's logger ``file`` reads: its file, or the folder of the folders of all projects.
_METRICS_FILE, _METRICS_ROOT = "VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"


#: Keys of ``trainer`` that make verl remove steps.
_KEEP = ("max_actor_ckpt_to_keep", "remove_previous_ckpt_in_save")


class RunRecord:
    """Mixin of trainers."""

    config: DictConfig
    global_steps: int
    panels: Any
    train_dataset: Any
    _config_text: str
    _metrics: str | None = None

    def keep_configuration(self) -> None:
        """Keep the configuration as it is now: setting up a run writes into it."""
        self._config_text = config_text(self.config)

    def keep_metrics(self) -> None:
        """Let verl's logger ``file`` write into the folder of the run, at every start into a file of its own.

        Left alone it writes into a folder of the project's name, wherever the command was started, over the metrics of
        the run before. What the user has set in the environment holds.
        """
        if "file" not in self.config.trainer.logger:
            return
        if not {_METRICS_FILE, _METRICS_ROOT} & os.environ.keys():
            folder = Path(self.config.trainer.default_local_dir)
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[_METRICS_FILE] = str(folder / f"metrics_{datetime.now():%Y%m%d_%H%M%S}.jsonl")
        self._metrics = os.environ.get(_METRICS_FILE)

    @functools.cached_property
    def inference(self) -> dict[str, Any]:
        """What is known of the :class:`~verl_uae.checkpoints.inference.InferenceSettings` of the run, by name."""
        prompt = most_frequent_prompt(self.training_prompts())
        if prompt is None:
            what = "the training rows have no prompt of one picture that a model folder could hold"
            logger.warning("%s: exports will need --caption-prompt", what)
        elif prompt.rows < prompt.total:
            what = "the training rows have several prompts; exported models ask that of most"
            logger.warning("%s, %d of %d rows: %r", what, prompt.rows, prompt.total, prompt.user)
        return settings_of_run(RunConfig(self.config).get, prompt)

    def training_prompts(self) -> Iterable[Any]:
        """Prompts of the training rows."""
        return self.train_dataset.dataframe.column(self.config.data.get("prompt_key", PROMPT_COLUMN))

    @functools.cached_property
    def summary(self) -> RunSummary:
        """What the run has reached."""
        rows = [name for name in RunConfig(self.config).files("data.val_files") if name.endswith(".parquet")]
        total = getattr(self, "total_training_steps", 0)
        return RunSummary(self.config.uae.stage, total, rows=rows[0] if rows else None, metrics=self._metrics)

    def fit(self, agent_loop_manager: Any) -> None:
        """verl's loop; what the run reached is known to the command, however the loop ends."""
        try:
            super().fit(agent_loop_manager)  # type: ignore[misc]
        finally:
            # Steps are counted before they are done; the last good step may have been saved again.
            begun = 0 if self.config.trainer.get("val_only") else 1
            self.summary.step = max(self.global_steps - begun, self.summary.saved or 0)
            self.summary.ended = True
            self._write_summary()

    def note_validation(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of a validation."""
        self.summary.note_validation(self.global_steps, metrics)
        told = [f"{name} {self.summary.last[name][0]:.4g}" for name in metrics if name in self.summary.last]
        logger.info("validated at step %d: %s", self.global_steps, ", ".join(told) or "no sample has a value")
        newest = self.panels.newest
        self.summary.panel = None if newest is None else str(newest)
        self._write_summary()

    def note_saved(self) -> None:
        """Take in that this step is complete on disk."""
        self.summary.saved = self.global_steps
        self._write_summary()

    def _write_summary(self) -> None:
        self.summary.step = max(self.summary.step, self.summary.saved or 0)
        self.summary.write(Path(self.config.trainer.default_local_dir))

    def save_record(self, folder: Path) -> None:
        """Write the record into a step folder, before its marker."""
        write_run_config(folder, self._config_text)
        write_run_settings(folder, self.inference)


class StepFolders(RunRecord):
    """Mixin of trainers: where step folders are, and what finishes one."""

    train_dataloader: Any

    @property
    def _checkpoint_root(self) -> Path:
        return Path(self.config.trainer.default_local_dir).absolute()

    def _step_folder(self) -> Path:
        return step_folder(self._checkpoint_root, self.global_steps)

    def _resume_folder(self) -> Path | None:
        """The step folder this run goes on from, checked; None at the beginning. Raises `CheckpointError`: the folder
        is not what its marker says."""
        trainer, root = self.config.trainer, self._checkpoint_root
        folder = None
        if trainer.resume_mode == "resume_path":
            folder = Path(trainer.resume_from_path).absolute()
        elif trainer.resume_mode == "auto" and root.is_dir():
            step = repair_tracker(root)
            folder = None if step is None else step_folder(root, step)
        if folder is not None:
            check_resumed(folder, digests=self.config.uae.checkpoint.digests)
        return folder

    def _finish_step(self) -> None:
        """Write what the step folder says of the run, mark it complete, its files being all there; then remove what is
        older than wanted."""
        self.save_record(self._step_folder())
        digests = self.config.uae.checkpoint.digests
        mark_complete(self._step_folder(), self.global_steps, digests=digests)
        self.note_saved()
        prune_steps(self._checkpoint_root, self.global_steps, self.config.trainer)


class DecoderCheckpoints(RunRecord):
    """Mixin of trainers: the trained decoder's part of a step folder."""

    total_training_steps: int
    learner: Any
    """The decoder's workers, a :class:`~verl_uae.stages.u4g.step.DecoderTrainingGroup`."""

    def save_decoder(self, folder: Path) -> None:
        """Checkpoint of the decoder into a step folder, and the decoder folder that others load."""
        clear_exports(folder)
        self.learner.save(str(folder / POLICY_FOLDER), self.global_steps)
        uae = self.config.uae
        wanted = uae.checkpoint.export == "every" or self.global_steps >= self.total_training_steps
        if wanted and "diffusers" in uae.train.save_contents:
            self.learner.export(str(folder / EXPORT_FOLDER), self.inference)

    def load_decoder(self, folder: Path) -> None:
        """Inverse of :meth:`save_decoder`."""
        self.learner.load(str(folder / POLICY_FOLDER))


@contextlib.contextmanager
def verl_keeps_all(config: Any) -> Iterator[None]:
    """Around verl's own saving: it removes the step before as soon as the captioner's part of the new one is written,
    and a kill before the rest is there would leave no complete step. :func:`prune_steps` removes it later.
    """
    before = {key: config.trainer[key] for key in _KEEP if key in config.trainer}
    config.trainer.update(dict.fromkeys(before))
    try:
        yield
    finally:
        config.trainer.update(before)


@dataclass(frozen=True)
class SavedState:
    """A data loader as it was; all that saving a checkpoint asks of one."""

    state: dict

    def state_dict(self) -> dict:
        return self.state


# ------------------------------------------------------------ the configuration

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

    def get(self, key: str) -> Any:
        """A value with interpolations resolved; None if unknown."""
        if self._config is None:
            return None
        try:
            value = OmegaConf.select(self._config, key)
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise ConfigError(key, f"cannot be resolved: {error}") from error

    def card(
        self,
        title: str,
        origin: str,
        base_models: Mapping[str, str],
        evaluation: Mapping[str, float],
        pictures: Path | None = None,
    ) -> Card:
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
            data=data_digests([*self.files("data.train_files"), *self.files("data.val_files")]),
            constants=constants,
            rewards=rewards,
            evaluation=evaluation,
            pictures=pictures,
        )

    def files(self, key: str) -> list[str]:
        """Data files that a key names."""
        value = self.get(key)
        return [value] if isinstance(value, str) else [str(name) for name in value or []]


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
    variables = [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)]
    # A path of a key file is no secret, and it may be the start of every path.
    secrets = [value for value in variables if len(value) >= _SHORTEST_SECRET and not value.startswith(("/", "."))]
    secrets.sort(key=len, reverse=True)

    def hidden(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            variable = _SECRET_VARIABLE if key == "env_vars" else _SECRET_KEY
            return {
                name: hidden(entry, "secret" if variable.search(str(name)) else str(name))
                for name, entry in value.items()
            }
        if isinstance(value, list):
            return [hidden(entry, key) for entry in value]
        if not isinstance(value, str):
            return value if value is None or isinstance(value, bool | int | float) else str(value)
        if value and _SECRET_KEY.search(key):
            return HIDDEN
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _USER_OF_URL.sub(HIDDEN, value)

    plain: dict[str, Any] = hidden(content, "")
    return plain


def _loaded(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    if not isinstance(config, DictConfig):
        raise CheckpointError(path, "holds no settings")
    for old, new in RENAMED.items():
        if OmegaConf.select(config, old, throw_on_resolution_failure=False) is not None:
            remedy = "rename it in a copy, and give that with --run-config"
            raise CheckpointError(path, f"is of an older version of verl_uae: {old} is called {new} now; {remedy}")
    return config
