# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A clock that jumps from event to event, processes that wait on it, and pools that remember when they worked.

A process is a generator: it yields seconds to let pass, or an :class:`Event` to wait for. Of two things at the same
moment the one that was asked for first comes first, so a simulation repeats itself exactly.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Process: TypeAlias = "Generator[float | Event, None, None]"


class Event:
    """Something that happens once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[Callable[[], None]] = []
        self.happened = False

    def fire(self) -> None:
        """It happens now; all that wait go on."""
        self.happened = True
        for call in self._waiting:
            self._clock.after(0.0, call)
        self._waiting.clear()

    def then(self, call: Callable[[], None]) -> None:
        """Call when it happens, or at once if it has."""
        if self.happened:
            self._clock.after(0.0, call)
        else:
            self._waiting.append(call)


class Clock:
    """The time of a simulation, seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call when so many seconds have passed."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), call))

    def start(self, process: Process) -> Event:
        """Start a process; the event is its end."""
        end = Event(self)

        def go() -> None:
            try:
                wanted = next(process)
            except StopIteration:
                end.fire()
                return
            if isinstance(wanted, Event):
                wanted.then(go)
            else:
                self.after(wanted, go)

        self.after(0.0, go)
        return end

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._due:
            self.now, _, call = heapq.heappop(self._due)
            call()


@dataclass
class Pool:
    """Devices that work, and when they did.

    Args:
        name: what they are.
        count: how many.
    """

    name: str
    count: int
    _worked: list[tuple[float, float, float]] = field(default_factory=list)

    def worked(self, start: float, end: float, devices: float = 1) -> None:
        """So many devices worked from ``start`` to ``end``."""
        self._worked.append((start, end, devices))

    def use(self, start: float, end: float) -> float:
        """Share of the pool that worked in that time."""
        seconds = sum(max(0.0, min(end, until) - max(start, since)) * devices for since, until, devices in self._worked)
        return seconds / (self.count * (end - start)) if end > start else 0.0


def beside(clock: Clock, *processes: Process) -> Process:
    """Processes at the same time; it ends with the last."""
    ends: list[Any] = [clock.start(process) for process in processes]
    yield from ends
