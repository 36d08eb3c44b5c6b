# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a phase of a step is made of, in numbers that do not depend on how fast a GPU is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from verl_uae.estimate.work import Cost


@dataclass(frozen=True, slots=True)
class Phase:
    """Of a step, on the GPU that does most."""

    name: str
    executed: Cost = field(default_factory=Cost)
    """Operations with what is computed again."""
    useful: float = 0.0
    """Operations without."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Bytes at the peak by owner."""
    server_share: float = 0.0
    """Share of the GPU's memory that an awake caption server takes besides."""
    read: float = 0.0
    """Bytes of the GPU's memory that are read one after the other: what token-by-token generation waits for."""
    gathered: float = 0.0
    """Bytes received from the other ranks of its shards."""
    across: float = 0.0
    """Of these, bytes over the network of the node's GPUs, per GPU."""
    copied: float = 0.0
    """Bytes of gradients into and out of the buffers in which they are summed."""
    collectives: float = 0.0
    """One after the other, each around a ring of the ranks."""
    hops: float = 0.0
    """Of all of their rings, inside of nodes."""
    hops_across: float = 0.0
    """Between nodes."""
    pinned: float = 0.0
    """Bytes between GPU and pinned memory of the host, both ways together."""
    pageable: float = 0.0
    """Bytes between GPU and memory of the host that is not pinned."""
    fixed_s: float = 0.0
    """Seconds that are assumed."""
    control_s: float = 0.0
    """Likewise, of the process that controls the run."""
    share: float = 1.0
    """Of steps that have it: 0 where it is done once in a run."""
    together: str = ""
    """Phases of one name here run beside each other, in streams of one GPU."""
    alone: float = 1.0
    """Share of them that does not: the first and the last part of what goes from one to the other."""
    blocks: bool = False
    """Its operations are of the decoder's repeated blocks, which can be compiled."""


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a model is called, and what a call holds."""

    calls: float
    """For weights and gradients, which travel in each."""
    whole: float
    """For operations, in calls with all of ``places``: the last of a micro-batch may have fewer."""
    places: int = 1
    """Of every picture in a call."""
    updates: int = 1
    """Of the weights."""
    few: Mapping[int, float] = field(default_factory=dict)
    """Calls besides, at one place each, that fewer rows go through: how many by the number of rows."""

    def of(self, micro: int, one: Callable[[int, int], Cost]) -> Cost:
        """Of all calls, given that of one by rows and places."""
        cost = one(micro, self.places).times(self.whole)
        for rows, calls in self.few.items():
            cost += one(rows, 1).times(calls)
        return cost


def as_preview(phase: Phase) -> Phase:
    """A phase of drawing by fewer steps, beside those by all of them."""
    return dataclasses.replace(
        phase, name=f"preview {phase.name}", together=phase.together and f"preview {phase.together}"
    )
