# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Calls that may hang, under a deadline, and a note of what a process was scoring, for those that end it.

Python cannot kill a thread. A call that outlives its deadline is therefore *abandoned*: its thread is a daemon that is
left running, its late answer is thrown away, and the caller goes on. Abandoned threads are counted, since each holds
memory and perhaps a core, and too many of them end the run with an error that names the culprit.

Not covered: native code that holds the interpreter lock (nothing else in the process runs then, this module
included), side effects of an abandoned call, and memory an abandoned call keeps. A reward that needs to be killed
belongs in a process of its own, behind a socket with a timeout.

A reward that crashes its process (a segmentation fault, ``os._exit``, the out-of-memory killer) raises nothing: only
what was written before can name it. The note is a small file of the machine, kept by the system when a process goes.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from verl_uae.beside import in_this_stream
from verl_uae.errors import RewardError
from verl_uae.reward.record import RewardRecord, Status, WrongAnswerError, describe_error

T = TypeVar("T")


class LateError(Exception):
    """A call gave itself up at its deadline. Not TimeoutError, which the user's own code may raise."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """How one call ended: with a value, with an error, or not in time."""

    value: T | None = None
    error: BaseException | None = None
    timed_out: bool = False
    seconds: float = 0.0

    def failure(self, label: str, timeout_s: float = math.inf) -> RewardRecord | None:
        """The record of a call that was late or raised, with the term's label in its reason; None for one that did not.

        INVALID for an answer of the wrong shape, ERROR for another exception.
        """
        if self.timed_out or isinstance(self.error, LateError):
            return RewardRecord.failed(Status.TIMEOUT, f"{label}: no answer within {timeout_s:g} s", self.seconds)
        if isinstance(self.error, WrongAnswerError):
            return RewardRecord.failed(Status.INVALID, f"{label}: {self.error}", self.seconds)
        if self.error is not None:
            return RewardRecord.failed(Status.ERROR, f"{label}: {describe_error(self.error)}", self.seconds)
        return None


class Guard:
    """Runs calls in daemon threads and gives up on each after ``timeout_s``.

    Args:
        timeout_s: seconds one call may take.
        max_abandoned: how many abandoned threads may be running at one time.
    """

    def __init__(self, timeout_s: float = 60.0, max_abandoned: int = 16) -> None:
        self.timeout_s = timeout_s
        self.max_abandoned = max_abandoned
        self._abandoned: list[threading.Thread] = []

    def run(self, owner: str, call: Callable[[], T]) -> Call[T]:
        """Run one call; see :meth:`map`."""
        return self.map(owner, [call])[0]

    def map(self, owner: str, calls: Sequence[Callable[[], T]], num_threads: int = 1) -> list[Call[T]]:
        """Run calls, ``num_threads`` at a time, each with a deadline of its own counted from its start.

        Gradient mode, autocast and the like are per thread: a call sets its own; the accelerator's stream is the
        caller's. ``owner`` labels the error.

        Returns:
            One entry per call, in order, at the latest
            ``ceil(hanging calls / num_threads) * timeout_s`` after all others are done.

        Raises:
            RewardError: when more than ``max_abandoned`` abandoned threads are still running.
        """
        found: list[Call[T] | None] = [None] * len(calls)
        # In the order of their starts: the first is the first to be late.
        running: dict[int, tuple[threading.Thread, float]] = {}
        ended: queue.SimpleQueue[tuple[int, Call[T]]] = queue.SimpleQueue()
        waiting = iter(enumerate(map(in_this_stream, calls)))
        while True:
            while len(running) < num_threads and (following := next(waiting, None)) is not None:
                thread = threading.Thread(target=_work, args=(*following, ended), name=f"reward-{owner}", daemon=True)
                running[following[0]] = (thread, time.monotonic())
                thread.start()
            if not running:
                return [call for call in found if call is not None]
            oldest, (thread, start) = next(iter(running.items()))
            try:
                index, call = ended.get(timeout=max(0.0, start + self.timeout_s - time.monotonic()))
            except queue.Empty:
                del running[oldest]
                found[oldest] = Call(timed_out=True, seconds=time.monotonic() - start)
                self._abandon(owner, thread)
            else:
                # An abandoned call answers to nobody.
                if running.pop(index, None) is not None:
                    found[index] = call

    @property
    def abandoned(self) -> int:
        """How many abandoned threads are still running."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned)

    def _abandon(self, owner: str, thread: threading.Thread) -> None:
        self._abandoned.append(thread)
        if self.abandoned > self.max_abandoned:
            raise RewardError(
                owner,
                f"{self.abandoned} calls still run after their timeout of {self.timeout_s:g} s, "
                f"more than the {self.max_abandoned} allowed",
            )


def _work(index: int, call: Callable[[], T], ended: queue.SimpleQueue[tuple[int, Call[T]]]) -> None:
    start = time.monotonic()
    try:
        value, error = call(), None
    # A fault boundary. Base exceptions too: sys.exit() in a user's reward must not silently end a thread.
    except BaseException as raised:
        value, error = None, raised
    ended.put((index, Call(value, error, seconds=time.monotonic() - start)))


# ---------------------------------------------------------------- the note

#: Bytes of a note.
SIZE = 1000

_lock = threading.Lock()
_entries: dict[object, str] = {}
_file: int | None = None


def note_of(pid: int) -> Path:
    """File of a process of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"verl_uae_doing_{os.getuid()}_{pid}"


def write_notes() -> None:
    """Keep a note of this process from now on."""
    global _file
    with _lock:
        if _file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            _file = os.open(note_of(os.getpid()), flags, 0o600)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Around what may take the process with it; several at a time, from several threads."""
    entry = object()
    _note(entry, what)
    try:
        yield
    finally:
        _note(entry, None)


def _note(entry: object, what: str | None) -> None:
    with _lock:
        if _file is None:
            return
        if what is None:
            _entries.pop(entry, None)
        else:
            _entries[entry] = what
        text = "; ".join(_entries.values()).encode("utf-8", "replace")[:SIZE]
        os.pwrite(_file, text.ljust(SIZE), 0)


def last_words(pid: int) -> str:
    """What a dead process was doing, and empty if that is not known; its note is removed."""
    path = note_of(pid)
    try:
        text = path.read_bytes().decode("utf-8", "replace").strip()
        path.unlink()
    except OSError:
        return ""
    return text
