# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The driver's part of a training command: signals, the last line and the exit code.

Slurm, Kubernetes, ``timeout`` and Ctrl-C send their signals to the driver; the weights are in other processes. So the
driver passes the request on (:mod:`verl_uae.runstate`), waits until the trainer has saved, and ends with 128 plus the
signal's number, as a shell would say it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from verl_uae.checkpoints.record import without_secrets
from verl_uae.compat import after_ray_init
from verl_uae.errors import StoppedError, UAEError, describe
from verl_uae.launch.callbacks import cluster_address
from verl_uae.runstate import RunState

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig

SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: Signals this close together are one: ``timeout`` sends its own to the process and to the group of the process.
SAME_S = 2.0

#: Seconds that ending at once may take, Ray's end included.
END_S = 30.0

#: Exit code of a run that an error ended.
FAILED = 1


class DriverCallback(Callback):
    """Hydra callback of our configs: around the job, in the driver."""

    _error: Exception | None = None

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Listen from here on: first alone, then beside Ray, which installs handlers of its own."""
        self.signals = StopSignals(config.uae.supervision.grace_s)
        self.signals.listen()
        group = _leave_group()

        say("starting Ray" if cluster_address(config) is None else "joining Ray")

        def connected() -> None:
            say("Ray runs; the trainer's process starts")
            RunState().tell_command(command_of(config))
            _return_to_group(group)
            self.signals.listen()

        after_ray_init(connected)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Read the trainer's note while Ray is still there; the last words of the run follow in other callbacks."""
        error = job_return._return_value
        self._error = error if isinstance(error, Exception) else None
        with contextlib.suppress(Exception):  # Fault boundary: without Ray there is no note, and the end goes on.
            self.signals.note = RunState().note() or self.signals.note

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        """Say in one line how a run ended that did not reach its end, and leave with the documented code.

        An error that is none of ours keeps its traceback, after that line.
        """
        error = self._error
        if error is None:
            return
        ours = _ours(error)
        say(self.signals.describe(ours or error, config))
        if self.signals.code is not None:
            raise SystemExit(self.signals.code)
        if ours is not None or _is_lost_trainer(error):
            raise SystemExit(FAILED)


class StopSignals:
    """What the driver makes of SIGTERM and SIGINT.

    Args:
        grace_s: longest time that saving and ending may take, seconds.
    """

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.name: str | None = None
        self.code: int | None = None
        self.note: str | None = None
        self._first = 0.0
        self._leaving: str | None = None

    def listen(self) -> None:
        """Install the handlers; in a thread, which cannot, nothing happens."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._heard)

    def describe(self, error: Exception, config: DictConfig) -> str:
        """The last line of a run that did not reach its end."""
        saved = self.note or newest_step(config)
        if self.name is not None and not isinstance(error, StoppedError):
            return f"stopped by {self.name} before its step could be saved ({_line(error)}); {saved}"
        if _is_lost_trainer(error):
            return f"the trainer's process died: {_line(error)}; {saved}"
        return f"{_line(error)}; {saved}"

    def _heard(self, number: int, _: Any) -> None:
        if self._leaving is not None:
            self._leave()
        if self.name is None:
            self.name, self.code, self._first = signal.Signals(number).name, 128 + number, time.monotonic()
            threading.Thread(target=self._pass_on, name="uae-stop", daemon=True).start()
        elif time.monotonic() - self._first > SAME_S:
            self._leaving = f"stopped at once by a second signal, {signal.Signals(number).name}"
            self._leave()

    def _pass_on(self) -> None:
        """In a thread: a handler interrupts Ray in its middle, where Ray must not be called."""
        import ray

        try:
            state = RunState() if ray.is_initialized() else None
            if state is None or state.note() is None:
                self._leave_from_thread(f"stopped by {self.name} before training began: there is nothing to save")
                return
            say(
                f"{self.name}: the step in work is brought to an end and saved, within uae.supervision.grace_s="
                f"{self.grace_s:g} s; a second signal ends the run at once"
            )
            state.request_stop(str(self.name))
        except Exception as error:
            # Fault boundary: whatever keeps the request from its way, the run must end.
            self._leave_from_thread(f"stopped by {self.name}; the trainer cannot be told to save: {_line(error)}")
            return
        time.sleep(self.grace_s)
        self._leave_from_thread(
            f"stopped by {self.name}: the step could not be saved within uae.supervision.grace_s={self.grace_s:g} s"
        )

    def _leave_from_thread(self, why: str) -> None:
        self._leaving = why
        self._leave_for_certain()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _leave(self) -> None:
        """In the main thread. Ray turns the code of a SystemExit in its waits into 1, so the last word is atexit's."""
        if self._leaving:
            say(self._leaving)
            self._leaving = ""
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            atexit.register(self._exit)
            self._leave_for_certain()
        raise SystemExit(self.code)

    def _leave_for_certain(self) -> None:
        """A SystemExit may meet who ignores it, as every destructor does, and Ray's end may hang; no signal is heard
        any more that could help."""

        def end() -> None:
            time.sleep(END_S)
            os._exit(self.code or FAILED)

        threading.Thread(target=end, name="uae-end", daemon=True).start()

    def _exit(self) -> None:
        import ray

        ray.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code or FAILED)


def say(line: str) -> None:
    """One line for the person or the log of the scheduler."""
    sys.stderr.write(f"verl_uae: {line}\n")
    sys.stderr.flush()


def command_of(config: DictConfig) -> str:
    """The training command of a composed configuration, Hydra's part included, with its secrets hidden."""
    words = ["python", "-m", "verl.trainer.main_ppo", "--config-name", str(config.hydra.job.config_name)]
    for word in config.hydra.overrides.task:
        key, equals, value = word.partition("=")
        hidden = without_secrets({key: value})[key] if equals else ""
        words.append(f"{key}{equals}{hidden}")
    return shlex.join(words)


def newest_step(config: DictConfig) -> str:
    """What there is to go on from, where the trainer could not say it."""
    from verl_uae.checkpoints.step import complete_steps, step_folder

    root = Path(config.trainer.default_local_dir).absolute()
    steps = complete_steps(root) if root.is_dir() else []
    if not steps:
        return "there is no complete step to go on from"
    how = "" if config.trainer.resume_mode == "auto" else " with trainer.resume_mode=auto"
    return f"the newest complete step is {step_folder(root, steps[-1])}; the same command{how} goes on from there"


def _ours(error: Exception) -> UAEError | None:
    cause = getattr(error, "cause", None)
    found = cause if isinstance(cause, UAEError) else error
    return found if isinstance(found, UAEError) else None


def _is_lost_trainer(error: Exception) -> bool:
    import ray

    return isinstance(error, ray.exceptions.RayActorError)


def _line(error: Exception) -> str:
    if isinstance(error, UAEError):
        return str(error)
    return describe(error)


def _leave_group() -> int | None:
    """Start what follows in a process group of its own, for a signal to the driver's group would end Ray before it
    could save. Not for the foreground group of a terminal: Ctrl-C goes there, and Ray's processes ignore it."""
    home = os.getpgrp()
    with contextlib.suppress(OSError):
        if os.tcgetpgrp(sys.__stdin__.fileno() if sys.__stdin__ else 0) == home:
            return None
    try:
        os.setpgid(0, 0)
    except OSError:
        return None
    return home


def _return_to_group(group: int | None) -> None:
    if group is not None:
        with contextlib.suppress(OSError):
            os.setpgid(0, group)
