# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of the hosts of a run: how much is used, and by whom, before the kernel ends a process for it.

A container counts by its own limit (cgroup), which is what it is ended for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

_GIB = 2**30
#: File of the limit, of the use, and names in ``memory.stat`` of the cache of files, of both kinds of cgroups. All
#: of it is given back before a process is ended, the active part too, such as a model that several ranks have read.
_CGROUPS = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
#: Processes that an error names, and the share from which they are looked up: it takes time.
_NAMED, NEAR = 3, 0.8


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Of one node."""

    node: str
    """Ray's id."""
    used: float
    """Bytes that cannot be given back."""
    limit: float
    """Bytes at which the kernel ends processes."""
    largest: tuple[tuple[str, float], ...]
    """Names of the processes that hold most, and their bytes, shared ones counted in each; none below
    :data:`NEAR`."""

    @property
    def share(self) -> float:
        """Of the limit, in [0, 1]."""
        return self.used / self.limit

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {size / _GIB:.1f} GiB" for name, size in self.largest)
        return (
            f"node {self.node[:8]} uses {self.used / _GIB:.1f} of {self.limit / _GIB:.1f} GiB of host memory; largest "
            f"processes: {largest}"
        )


def read_memory(node: str, root: Path = Path("/sys/fs/cgroup")) -> HostMemory:
    """Memory of the host that this process is on.

    Args:
        node: what it is called.
        root: folder of the control groups.
    """
    memory = psutil.virtual_memory()
    used, limit = float(memory.total - memory.available), float(memory.total)
    for limit_file, used_file, cache in _CGROUPS:
        try:
            own = float((root / limit_file).read_text())
            held = float((root / used_file).read_text())
            stat = dict(line.split() for line in (root / used_file).with_name("memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            # No such group, or one without a limit, which is the word max.
            continue
        if own < limit:
            used, limit = held - sum(float(stat.get(name, 0)) for name in cache), own
        break
    return HostMemory(node, used, limit, _largest() if used > NEAR * limit else ())


def _largest() -> tuple[tuple[str, float], ...]:
    found: list[tuple[float, str]] = []
    for process in psutil.process_iter(["memory_info", "cmdline", "name"]):
        memory, words = process.info["memory_info"], process.info["cmdline"]
        if memory is not None:
            found.append((float(memory.rss), words[0] if words else process.info["name"]))
    return tuple((name[:60], size) for size, name in sorted(found, reverse=True)[:_NAMED])


class _Reader:
    """An actor on another node."""

    def read(self, node: str) -> HostMemory:
        return read_memory(node)


class HostWatch:
    """Looks at all nodes of the cluster, without waiting for any."""

    def __init__(self) -> None:
        self.own = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        self._readers: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self.latest: dict[str, HostMemory] = {}
        self.peak: dict[str, HostMemory] = {}
        """Since the last :meth:`metrics`."""

    def start(self, nodes: Sequence[str]) -> None:
        """Begin to look at nodes, besides the own."""
        for node in nodes:
            if node != self.own and node not in self._readers:
                placed = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
                remote: Any = ray.remote(num_cpus=0, max_restarts=0)(_Reader)
                self._readers[node] = remote.options(scheduling_strategy=placed).remote()

    def look(self) -> HostMemory:
        """The fullest node, by what each has answered last."""
        self._note(read_memory(self.own))
        for node, reader in list(self._readers.items()):
            if node not in self._asked:
                self._asked[node] = reader.read.remote(node)
            answered, _ = ray.wait([self._asked[node]], timeout=0)
            if answered:
                try:
                    self._note(ray.get(self._asked.pop(node)))
                except ray.exceptions.RayError:
                    # The node is lost, which whoever lives on it is missed for.
                    del self._readers[node]
                    self.latest.pop(node, None)
        return max(self.latest.values(), key=lambda memory: memory.share)

    def _note(self, memory: HostMemory) -> None:
        self.latest[memory.node] = memory
        if memory.node not in self.peak or memory.share > self.peak[memory.node].share:
            self.peak[memory.node] = memory

    def metrics(self) -> Mapping[str, float]:
        """Of the fullest node since the last call: share of its memory, and GiB; none before the first look."""
        peak, self.peak = list(self.peak.values()), {}
        if not peak:
            return {}
        fullest = max(peak, key=lambda memory: memory.share)
        return {"perf/host_memory_share": fullest.share, "perf/host_memory_gib": fullest.used / _GIB}
