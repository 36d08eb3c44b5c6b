# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Calls that may hang, under a deadline.

Python cannot kill a thread. A call that outlives its deadline is therefore *abandoned*: its thread is a daemon that is
left running, its late answer is thrown away, and the caller goes on. Abandoned threads are counted, since each holds
memory and perhaps a core, and too many of them end the run with an error that names the culprit.

Not covered: native code that holds the interpreter lock (nothing else in the process runs then, this module
included), side effects of an abandoned call, and memory an abandoned call keeps. A reward that needs to be killed
belongs in a process of its own, behind a socket with a timeout.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from verl_uae.errors import RewardError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """How one call ended: with a value, with an error, or not in time."""

    value: T | None = None
    error: BaseException | None = None
    timed_out: bool = False
    seconds: float = 0.0


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
        """Run calls on ``num_threads`` threads, each call with a deadline of its own counted from its start.

        Args:
            owner: label of the reward term, for the error.
            calls: functions without arguments. Gradient mode, autocast and the like are per thread: a call sets
                its own.
            num_threads: how many run at a time.

        Returns:
            One entry per call, in order, at the latest
            ``ceil(hanging calls / num_threads) * timeout_s`` after all others are done.

        Raises:
            RewardError: when more than ``max_abandoned`` abandoned threads are still running.
        """
        work = _Round(calls)
        try:
            for _ in range(min(num_threads, len(calls))):
                work.start_thread(owner)
            with work.changed:
                while work.unfinished:
                    wait_s = work.earliest_start() + self.timeout_s - time.monotonic()
                    if wait_s > 0.0:
                        work.changed.wait(wait_s)
                        continue
                    for thread in work.expire(self.timeout_s):
                        self._abandon(owner, thread)
                        work.start_thread(owner)
        finally:
            work.closed = True
        return [call for call in work.results if call is not None]

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


class _Round(Generic[T]):
    """The shared state of one :meth:`Guard.map`: everything below is read and written under ``changed``."""

    def __init__(self, calls: Sequence[Callable[[], T]]) -> None:
        self.calls = calls
        self.results: list[Call[T] | None] = [None] * len(calls)
        self.unfinished = len(calls)
        self.closed = False
        self.changed = threading.Condition()
        self._next = 0
        self._running: dict[int, tuple[threading.Thread, float]] = {}

    def start_thread(self, owner: str) -> None:
        """Add a worker; it ends by itself when no call is left."""
        threading.Thread(target=self._work, name=f"reward-{owner}", daemon=True).start()

    def earliest_start(self) -> float:
        """When the oldest running call began (now, where none runs yet)."""
        return min((start for _, start in self._running.values()), default=time.monotonic())

    def expire(self, timeout_s: float) -> list[threading.Thread]:
        """Settle every call that is over its time; returns the threads still in them."""
        now = time.monotonic()
        late = [index for index, (_, start) in self._running.items() if now - start >= timeout_s]
        threads = []
        for index in late:
            thread, start = self._running.pop(index)
            self._settle(index, Call(timed_out=True, seconds=now - start))
            threads.append(thread)
        return threads

    def _settle(self, index: int, call: Call[T]) -> None:
        self.results[index] = call
        self.unfinished -= 1
        self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                if self.closed or self._next == len(self.calls):
                    return
                index, self._next = self._next, self._next + 1
                start = time.monotonic()
                self._running[index] = (threading.current_thread(), start)
                self.changed.notify_all()
            value, error = _attempt(self.calls[index])
            with self.changed:
                if self._running.pop(index, None) is None:
                    return  # Expired meanwhile: another thread has taken this one's place.
                self._settle(index, Call(value=value, error=error, seconds=time.monotonic() - start))


def _attempt(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return call(), None
    # A fault boundary. Base exceptions too: sys.exit() in a user's reward must not silently end a worker.
    except BaseException as error:
        return None, error
