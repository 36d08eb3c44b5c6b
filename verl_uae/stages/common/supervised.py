# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's training loop under supervision: however it ends, the last good step is kept where that is possible."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, open_dict
from verl.utils.device import get_device_name

from verl_uae.checkpoints.names import RUN_PAGE
from verl_uae.checkpoints.record import SavedState, StepFolders, without_secrets
from verl_uae.checkpoints.step import complete_steps, is_complete, step_folder
from verl_uae.checkpoints.summary import duration
from verl_uae.compat import tracked_config
from verl_uae.config.condition_length import resolve_length
from verl_uae.config.left_open import left_open
from verl_uae.config.path_keys import resolve_paths
from verl_uae.config.run_folder import hold
from verl_uae.config.validate import validate
from verl_uae.errors import CheckpointError, ConfigError, DecoderError, UAEError, WorkerError, describe
from verl_uae.runstate import RunState
from verl_uae.stages.common.nodes import node_name, this_node
from verl_uae.stages.common.panel import PanelWriter
from verl_uae.stages.common.run_page import RunPage
from verl_uae.stages.common.speed import UsefulWork, device_memory, gpus, keep_from_collector, speed_metrics
from verl_uae.stages.common.supervisor import Supervisor
from verl_uae.stages.common.trackers import keep_run

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: What a full disk makes torch, safetensors and the system say.
_FULL_DISK = ("no space left", "iostream error", "pytorchstreamwriter failed", "disk quota", f"errno {errno.ENOSPC}")

#: Steps whose pace tells how long the others will take.
NEWEST = 50

#: Seconds in which ranks answer that are about to save.
ANSWER_S = 30.0

#: Seconds in which the watch of the actors hears of a death that a call to one has met.
HEARD_S = 2.0


@dataclass(frozen=True)
class GoodStep:
    """The step whose weights the workers hold, with what else a checkpoint of it has."""

    number: int
    loader: dict | None
    """Place in the data; None where this run has not made the step, and so need not save it."""
    side: dict


class SupervisedTrainer(StepFolders):
    """Mixin in front of verl's trainer."""

    # Set by verl.
    total_training_steps: int
    _save_checkpoint: Callable[[], None]
    _good: GoodStep | None
    """None while the weights are between two steps."""
    _ended: deque[tuple[int, float]]
    """Of the newest steps, numbers and times; validations and checkpoints between them count."""
    _useful: UsefulWork | None = None
    """Of the driver, which needs some seconds for it."""

    def __init__(self, config: DictConfig) -> None:
        if get_device_name() == "cpu":
            # verl's command, in a process that nobody has told so, writes the accelerator that it takes for granted.
            config.trainer.device = "cpu"
        # A trainer that is made from Python has not met the checks of the command.
        resolve_paths(config)
        try:
            validate(config)
        except ConfigError as error:
            # Met by the command before, on its own node.
            where = f" (on {node_name(this_node())}, where the trainer runs)" if ray.is_initialized() else ""
            raise ConfigError(error.key, f"{error.message}{where}") from error
        resolve_length(config)
        for key, values in left_open(config).items():
            words = f"give {json.dumps(values[-1])}, which needs least memory, or another value"
            raise ConfigError(key, f"null is decided by the training command alone; {words}")
        hold(Path(config.trainer.default_local_dir))
        super().__init__(config)  # type: ignore[call-arg]
        self.keep_configuration()
        self.keep_metrics()
        keep_run(config)
        self.panels = PanelWriter(config.uae.panel.dir, os.path.join(config.trainer.default_local_dir, RUN_PAGE))
        self._ended = deque(maxlen=NEWEST)

    # ------------------------------------------------------------ what a trainer adds

    def watched(self) -> Iterator[tuple[str, Any]]:
        """Names and actors that the run cannot go on without."""
        yield from ()

    def trained_ranks(self) -> Iterator[Any]:
        """Actors whose weights a checkpoint holds."""
        yield from ()

    def place_in_data(self) -> dict:
        """Where the step after this one goes on in the data."""
        return self.train_dataloader.state_dict()

    def side_state(self) -> dict:
        """What a checkpoint holds besides weights and place in the data, as plain data of its own."""
        return {}

    def restore_side_state(self, state: dict) -> None:
        """Inverse of :meth:`side_state`."""

    def quieten(self) -> None:
        """Make room for saving when a step ends in its middle."""

    def decoder_ranks(self) -> Iterator[Any]:
        """Actors in which the decoder draws or learns."""
        yield from ()

    def stage_of_step(self) -> str:
        """Whose step this is."""
        return str(self.config.uae.stage)

    def note_speed(self, metrics: dict, seconds: Mapping[str, float], pictures: int) -> None:
        """Add what the log says of a step's speed and memory, see :mod:`~verl_uae.stages.common.speed`.

        Args:
            metrics: of the step; the length of its captions is read.
            seconds: by timer.
            pictures: drawn, or learnt from, in the step.
        """
        metrics.update(speed_metrics(seconds, pictures, gpus(self.config)))
        if self._useful is None and self.supervisor.state is not None:
            told = self.supervisor.state.useful()
            self._useful = None if told is None else UsefulWork.from_text(told)
        if self._useful is not None:
            tokens = metrics.get("caption/tokens/mean")
            metrics.update(self._useful.metrics(self.stage_of_step(), seconds, tokens))
        if self.config.trainer.device != "cpu":
            metrics.update(device_memory(self.decoder_ranks()))
        metrics.update(self.supervisor.hosts.metrics())

    def say_step(self, step: int, text: str) -> None:
        """Log the line of a step, with what the others will take.

        Args:
            step: its number.
            text: what it found.
        """
        self._ended.append((step, time.monotonic()))
        (first, began), (last, ended) = self._ended[0], self._ended[-1]
        left = ""
        if last > first:
            left = f"; {duration((ended - began) / (last - first) * (self.total_training_steps - step))} left"
        logger.info("step %d/%d: %s%s", step, self.total_training_steps, text, left)
        self.run_page.update()

    @functools.cached_property
    def run_page(self) -> RunPage:
        """The page of this run."""
        state = self.supervisor.state
        return RunPage(self.config, self._metrics, None if state is None else state.command())

    def note_validation(self, metrics: Mapping[str, float]) -> None:
        """Also on the page of the run."""
        super().note_validation(metrics)
        self.run_page.update(now=True)

    # ------------------------------------------------------------ the loop

    @functools.cached_property
    def supervisor(self) -> Supervisor:
        """The one of this run."""
        state = RunState() if ray.is_initialized() else None
        settings, key = self.config.uae.supervision, "uae.supervision.stall_timeout_s"
        return Supervisor(settings.stall_timeout_s, key, state, settings.host_memory)

    def fit(self, agent_loop_manager: Any) -> None:
        """verl's loop. Whatever ends it, the last good step is saved where its weights are still there.

        Raises:
            StoppedError: the driver was asked to stop.
            WorkerError: a process that the run needs has died, or the loop made no progress.
        """
        self.agent_loop_manager = agent_loop_manager
        self._good = GoodStep(self.global_steps, None, {})
        for name, actor in self.watched():
            self.supervisor.watch(name, actor)
        keep_from_collector({actor for _, actor in self.watched()}.union(self.decoder_ranks()))
        self._tell("")
        try:
            with self.supervisor.guarding(), tracked_config(without_secrets):
                super().fit(agent_loop_manager)  # type: ignore[misc]
        except Exception as error:
            # Fault boundary: whatever ends the loop, the last good step is kept; then it is raised again.
            raise self._end(error) from error
        finally:
            self.supervisor.close()
            self.run_page.update(now=True, ended=True)

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Around what changes weights: they belong to the step before until here, and to this step afterwards. Within
        another it is a part of that."""
        if self._good is None:
            yield
            return
        self.supervisor.boundary(f"the update of step {self.global_steps}")
        self._good = None
        yield
        self._good = GoodStep(self.global_steps, self.place_in_data(), self.side_state())
        self.supervisor.progress(f"the end of step {self.global_steps}")

    def on_step_begin(self) -> None:
        """Progress."""
        self.supervisor.progress(f"the begin of step {self.global_steps}")
        super().on_step_begin()  # type: ignore[misc]

    def on_step_end(self) -> None:
        """The boundary where a run stops whose step is over: caption servers still sleep."""
        self.supervisor.boundary(f"sending the weights of step {self.global_steps}")
        super().on_step_end()  # type: ignore[misc]
        self.supervisor.progress(f"what follows step {self.global_steps}")

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around writing a step folder.

        Raises:
            CheckpointError: it cannot be written, with the room that is left on its disk.
        """
        self.supervisor.progress(f"saving step {self.global_steps}")
        try:
            yield
        except Exception as error:
            # Fault boundary: every way of failing to write gets the same diagnosis, and is raised again.
            raise self._not_saved(error) from error

    # ------------------------------------------------------------ the end

    def _end(self, error: Exception) -> Exception:
        """Save what can be saved, tell the driver of it, and say what is to be raised."""
        named = self._named(error)
        note = self._keep_last_good_step(named)
        logger.warning("%s; %s", named, note)
        self._tell(note)
        return named

    def _named(self, error: Exception) -> Exception:
        """The error as one of ours where a worker's death is behind it."""
        if isinstance(error, UAEError):
            return error
        cause = getattr(error, "cause", None)
        if isinstance(cause, UAEError):
            return cause
        if isinstance(error, ray.exceptions.RayActorError) or isinstance(cause, ray.exceptions.RayActorError):
            dead = self._dead()
            return WorkerError("a worker", describe(error)) if not dead else WorkerError("workers", "; ".join(dead))
        return error

    def _dead(self) -> list[str]:
        """Watched actors that have died; a call can hear of a death before the watch does."""
        deadline = time.monotonic() + HEARD_S
        while not (dead := self.supervisor.dead()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return dead

    def _keep_last_good_step(self, error: Exception) -> str:
        """One line: what is saved and how to go on."""
        good, trainer = self._good, self.config.trainer
        if good is not None and good.loader is None:
            saved = "no step was finished, so there is nothing to save"
        elif good is not None and is_complete(step_folder(self._checkpoint_root, good.number)):
            return self._resumable(f"step {good.number} is saved in {step_folder(self._checkpoint_root, good.number)}")
        elif trainer.save_freq <= 0:
            saved = f"nothing was saved, since trainer.save_freq={trainer.save_freq}"
        elif good is None:
            saved = "the weights were in the middle of an update, so they were not saved"
        else:
            return self._save(good, error)
        return self._or_earlier(saved)

    def _save(self, good: GoodStep, error: Exception) -> str:
        name = f"step {good.number}"
        if isinstance(error, CheckpointError):
            return self._or_earlier(f"{name} is not saved")
        if isinstance(error, DecoderError | WorkerError) and self._lost_ranks():
            return self._or_earlier(f"{name} cannot be saved: a rank that holds its weights is dead or does not answer")
        logger.warning("saving step %d before stopping", good.number)
        self.supervisor.leave_dead()
        try:
            with self.supervisor.guarding():
                self.quieten()
                self.global_steps = good.number
                self.train_dataloader = SavedState(good.loader or {})
                self.restore_side_state(good.side)
                self._save_checkpoint()
        except Exception as second:
            # Fault boundary: the first error is the one to be raised.
            return self._or_earlier(f"{name} could not be saved ({describe(second)})")
        return self._resumable(f"{name} is saved in {step_folder(self._checkpoint_root, good.number)}")

    def _lost_ranks(self) -> bool:
        """Whether a rank whose weights would be saved is dead, or stopped, so that saving would wait for ever."""
        pings = [rank.__ray_ready__.remote() for rank in self.trained_ranks()]
        answered, silent = ray.wait(pings, num_returns=len(pings), timeout=ANSWER_S) if pings else ([], [])
        return bool(silent) or any(_is_dead(ping) for ping in answered)

    def _or_earlier(self, text: str) -> str:
        steps = complete_steps(self._checkpoint_root) if self._checkpoint_root.is_dir() else []
        if not steps:
            return f"{text}; there is no complete step to go on from"
        return self._resumable(f"{text}; the newest complete step is {step_folder(self._checkpoint_root, steps[-1])}")

    def _resumable(self, text: str) -> str:
        how = "" if self.config.trainer.resume_mode == "auto" else " with trainer.resume_mode=auto"
        return f"{text}; the same command{how} goes on from there"

    def _tell(self, note: str) -> None:
        if self.supervisor.state is not None:
            self.supervisor.state.tell(note)

    def _not_saved(self, error: Exception) -> Exception:
        if isinstance(error, UAEError):
            return error
        folder = self._step_folder()
        text = describe(error)
        full = any(sign in str(error).lower() for sign in _FULL_DISK)
        free = _free_mib(folder)
        room = f"; {free:,.0f} MiB are free on its disk" if free is not None else ""
        remedy = ": make room, or choose another trainer.default_local_dir" if full else ""
        return CheckpointError(folder, f"cannot be saved: {text}{room}{remedy}")


def _is_dead(ping: Any) -> bool:
    try:
        ray.get(ping)
    except ray.exceptions.RayActorError:
        return True
    return False


def _free_mib(folder: Path) -> float | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free / 2**20
    except OSError:
        return None


def cover_steps(config: DictConfig, total_steps: int, steps_per_epoch: int, rows: int) -> None:
    """Set ``trainer.total_epochs`` so that it never ends a run early.

    verl stops at whichever comes first, ``total_epochs`` or ``total_training_steps``, and in the first case neither
    validates nor saves at the end.

    Args:
        config: the whole composed configuration; changed.
        total_steps: steps of the run.
        steps_per_epoch: whole batches of the training data.
        rows: usable rows of the training data, for the message.

    Raises:
        ConfigError: there is no whole batch.
    """
    if steps_per_epoch < 1:
        raise ConfigError(
            "data.train_batch_size", f"{config.data.train_batch_size} is more than the {rows} usable rows can fill"
        )
    with open_dict(config):
        config.trainer.total_epochs = -(-total_steps // steps_per_epoch)
