# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Watches a run from beside the training loop, and interrupts the loop when it waits for what will never come.

The loop is verl's: it waits without a deadline for workers, caption servers and the TransferQueue, in its own code and
in Ray's. So one thread of the task runner looks, once a second,

* whether a process that the run cannot go on without has died,
* whether the loop has made progress lately,
* whether the driver was asked to stop,
* whether the memory of a host is nearly full.

For the first two it interrupts the main thread, wherever that waits. The others are honoured by the loop itself, at
its next boundary, where the weights belong to one step.

Ray asks a process to end itself, which one that is stopped (SIGSTOP, a debugger, a hung driver of a device) does not
hear; so processes are known by their number and node, and SIGKILL reaches them, but only on its own node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray

from verl_uae.errors import StoppedError, UAEError, WorkerError, describe
from verl_uae.reward.deadline import last_words
from verl_uae.runstate import RunState
from verl_uae.stages.common.hosts import HostMemory, HostWatch
from verl_uae.stages.common.nodes import run_on, this_node

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


@dataclass(frozen=True)
class Process:
    """A process of the cluster."""

    pid: int
    node: str
    """Ray's id of the node."""
    started: float
    """Seconds since the epoch: with the number it names one process, since numbers are given out again."""

    def __str__(self) -> str:
        return f"process {self.pid} of node {self.node[:8]}"

    def kill(self) -> None:
        """SIGKILL it, wherever it is; nothing happens if it is gone, or its node does not answer."""
        with contextlib.suppress(ray.exceptions.RayError):
            run_on(self.node, _kill, self)

    def state(self) -> str:
        """``gone``, as where its node does not answer, or what the operating system says: ``running``, ``sleeping``,
        ``stopped``, ..."""
        try:
            return str(run_on(self.node, _state, self))
        except ray.exceptions.RayError:
            return "gone"

    def last_words(self) -> str:
        """What it was scoring when it died; empty if nothing, or if its node does not answer."""
        try:
            return str(run_on(self.node, _last_words, self))
        except ray.exceptions.RayError:
            return ""


def processes_of(actors: Sequence[Any], timeout_s: float | None = None) -> list[Process]:
    """Processes of live actors; each is asked behind whatever it is doing.

    Raises:
        ray.exceptions.RayError: an actor is dead, or has not answered in time.
    """
    return list(ray.get([actor.__ray_call__.remote(identify) for actor in actors], timeout=timeout_s))


def identify(_: Any = None) -> Process:
    """The process that runs this; an actor runs it through Ray's ``__ray_call__``."""
    return Process(os.getpid(), this_node(), psutil.Process().create_time())


def _find(process: Process) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        return found if found.create_time() == process.started else None
    except psutil.NoSuchProcess:
        return None


def _kill(process: Process) -> None:
    found = _find(process)
    if found is not None:
        found.send_signal(signal.SIGKILL)


def _last_words(process: Process) -> str:
    return last_words(process.pid)


def _state(process: Process) -> str:
    found = _find(process)
    if found is None:
        return "gone"
    try:
        return "gone" if found.status() == psutil.STATUS_ZOMBIE else str(found.status())
    except psutil.NoSuchProcess:
        return "gone"


#: Seconds between two looks.
POLL_S = 1.0

#: Seconds that a death gets to reach the loop by itself, as the error of the call it broke.
NOTICE_S = 5.0

#: Interrupts the main thread; Ray leaves it alone in actors.
_SIGNAL = signal.SIGUSR1


@dataclass
class _Watched:
    """An actor, and a question that stands before it as long as it lives: only its death answers with an error."""

    name: str
    actor: Any
    ping: Any
    process: Process | None = None
    death: str | None = None
    died_at: float = field(default=0.0)


class Supervisor:
    """One of a training run; lives in the process of the loop.

    Args:
        stall_timeout_s: longest time without progress, seconds.
        key: configuration key of it, for the error.
        state: what driver and trainer tell each other; None where nobody can ask to stop.
        host_memory: share of a host's memory above which the run is brought to an end; 1 is never.
    """

    def __init__(
        self, stall_timeout_s: float, key: str, state: RunState | None = None, host_memory: float = 1.0
    ) -> None:
        self.host_memory = host_memory
        self.hosts = HostWatch()
        self._full: HostMemory | None = None
        self.stall_timeout_s = stall_timeout_s
        self.key = key
        self.state = state
        self._watched: list[_Watched] = []
        self._doing, self._limit, self._since = "the start of training", stall_timeout_s, time.monotonic()
        self._limit_key = key
        self._pending: UAEError | None = None
        self._guarded = False
        self._looking = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ what the loop says

    def watch(self, name: str, actor: Any) -> None:
        """End the run when this actor dies."""
        self._watched.append(_Watched(name, actor, actor.__ray_call__.remote(identify)))

    def boundary(self, doing: str) -> None:
        """Progress was made, the weights belong to one step, and ``doing`` comes next.

        Raises:
            StoppedError: the driver was asked to stop.
        """
        self.progress(doing)
        self.check_stop()

    def progress(self, doing: str) -> None:
        """Progress was made, and ``doing`` comes next."""
        self._doing, self._since = doing, time.monotonic()

    def check_stop(self) -> None:
        """Raise :class:`StoppedError` if the driver was asked to stop, or a host's memory is nearly full."""
        if self._full is not None:
            raise StoppedError(f"{self._full}; above uae.supervision.host_memory={self.host_memory:g} the run stops")
        reason = None if self.state is None else self.state.stop_reason()
        if reason is not None:
            raise StoppedError(f"stopped by {reason}")

    @contextlib.contextmanager
    def phase(self, doing: str, limit_s: float, key: str) -> Iterator[None]:
        """Something with a limit of its own, which counts from now."""
        before = (self._doing, self._limit, self._limit_key)
        self._doing, self._limit, self._limit_key = doing, limit_s, key
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._doing, self._limit, self._limit_key = before
            self._since = time.monotonic()

    def leave_dead(self) -> None:
        """Watch no longer who has died by now: that has ended the run, and must not interrupt the saving of it."""
        with self._looking:
            self._ask()
            self._watched = [entry for entry in self._watched if entry.death is None]
            self._pending = None

    # ------------------------------------------------------------ guarding

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """The main thread can be interrupted inside.

        Raises:
            WorkerError: a watched actor died, or the loop made no progress.
        """
        signal.signal(_SIGNAL, self._interrupted)
        self._since = time.monotonic()
        self._guarded = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_until_closed, name="uae-supervisor", daemon=True)
            self._thread.start()
        try:
            yield
        except KeyboardInterrupt:
            self._guarded = False
            pending, self._pending = self._pending, None
            if pending is None:
                raise
            raise pending from None
        finally:
            self._guarded = False

    def close(self) -> None:
        """Look no more: the actors may be ended now."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        # Ray asks its processes to end, which one that is stopped would never hear.
        for _, process, state in self._stopped():
            if state != "disk-sleep":
                process.kill()

    def dead(self) -> list[str]:
        """Names of watched actors that have died, each with the reason."""
        self._ask()
        return [f"{entry.name} died ({entry.death})" for entry in self._watched if entry.death is not None]

    def _interrupted(self, *_: Any) -> None:
        # Runs in the main thread. Ray turns this one exception, and no other, into the end of its wait.
        if self._guarded and self._pending is not None:
            raise KeyboardInterrupt

    def _look_until_closed(self) -> None:
        while not self._closed.wait(POLL_S):
            with self._looking:
                try:
                    found = self._look()
                except Exception as error:
                    # Fault boundary: a look that fails must not end the looking.
                    logger.warning("supervisor: %s: %s", type(error).__name__, error)
                    continue
                if found is not None and self._guarded and self._pending is None:
                    logger.error("%s", found)
                    self._pending = found
                if self._guarded and self._pending is not None:
                    signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)

    def _look(self) -> UAEError | None:
        self._ask()
        fullest = self.hosts.look()
        if fullest.share > self.host_memory and self._full is None:
            logger.error("%s; the run stops at the next boundary", fullest)
            self._full = fullest
        now = time.monotonic()
        for entry in self._watched:
            if entry.death is not None and now - entry.died_at > NOTICE_S:
                return WorkerError(entry.name, f"died while the run waited for {self._doing}: {entry.death}")
        waited = now - self._since
        if self._guarded and waited > self._limit:
            return WorkerError(
                "no progress", f"{self._doing} took longer than {self._limit_key}={self._limit:g} s{self._diagnosis()}"
            )
        return None

    def _ask(self) -> None:
        living = {entry.ping: entry for entry in self._watched if entry.death is None}
        if not living:
            return
        answered, _ = ray.wait(list(living), num_returns=len(living), timeout=0)
        for ping in answered:
            entry = living[ping]
            try:
                entry.process = ray.get(ping)
            except ray.exceptions.RayError as error:
                entry.death, entry.died_at = describe(error), time.monotonic()
            else:
                self.hosts.start([entry.process.node])
                entry.ping = entry.actor.__ray_call__.remote(identify)

    def _stopped(self) -> list[tuple[str, Process, str]]:
        """Name, process and state of what the operating system has stopped."""
        found = []
        for entry in self._watched:
            state = "" if entry.process is None or entry.death is not None else entry.process.state()
            if entry.process is not None and state in ("stopped", "tracing-stop", "disk-sleep"):
                found.append((entry.name, entry.process, state))
        return found

    def _diagnosis(self) -> str:
        """Which processes are stopped, which is why others wait."""
        stopped = [f"{name} ({process}) is {state}" for name, process, state in self._stopped()]
        return f": {'; '.join(stopped)}" if stopped else ""
