# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The operating-system processes of Ray actors: which they are, how they are, and how to end one for certain.

Ray asks a process to end itself, which one that is stopped (SIGSTOP, a debugger, a hung driver of a device) does not
hear. SIGKILL reaches any, but only on its own node.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_uae.reward.deadline import last_words

#: Seconds a node gets to start the small process that looks at another one.
LOOK_TIMEOUT_S = 60.0


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
        """SIGKILL it, wherever it is; nothing happens if it is gone."""
        _on_node(self.node, _kill, self)

    def state(self) -> str:
        """``gone``, or what the operating system says: ``running``, ``sleeping``, ``stopped``, ..."""
        return str(_on_node(self.node, _state, self))

    def last_words(self) -> str:
        """What it was scoring when it died; empty if nothing, or if its node does not answer."""
        try:
            return str(_on_node(self.node, _last_words, self))
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
    node = ray.get_runtime_context().get_node_id()
    return Process(os.getpid(), node, psutil.Process().create_time())


def _on_node(node: str, function: Callable[[Process], Any], process: Process) -> Any:
    if node == ray.get_runtime_context().get_node_id():
        return function(process)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    placed = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False))
    return ray.get(placed.remote(process), timeout=LOOK_TIMEOUT_S)


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
