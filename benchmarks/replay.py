# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Updates of a batch of stage U4G on several gloo ranks of this machine, FSDP2 with resharding: all trained steps of
a sample in one pass against one step after the other, in pairs.

Both are the package's own (``uae.u4g.replay_steps``), on the same samples. What differs: weights are gathered and
gradients summed once where that was done for every step, products are so many times as tall, and the old
log-probabilities of every update but the first are computed again.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from benchmarks.measure import Part, compare
from benchmarks.ours import Ours, VerlEngine
from benchmarks.sizes import build_conditioner, build_policy
from benchmarks.work import Clock, Work

CLOCKS = ("wall", "processor")


@dataclass(frozen=True, slots=True)
class Replay:
    """What a run of pairs found; ``ours`` are the steps together."""

    wall: Part
    processor: Part
    """Of the processor time of all ranks together."""
    together: int
    """Steps in a pass."""
    bytes_gathered: float
    """What a rank receives of weights in the updates of a batch, one step after the other."""
    bytes_once: float
    """What it receives when all weights are gathered once."""
    gather_s: float
    """Seconds of gathering all weights once, nothing else running; median."""


def measure(work: Work, ranks: int, repetitions: int, warmup: int) -> Replay:
    """Start the ranks, each with as many samples as the work has, and measure.

    Raises:
        RuntimeError: a rank failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Both inherit it: each rank imports verl in a process of its own.
    os.environ["VERL_PLATFORM"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.pt"
        arguments = (ranks, port, work, repetitions, warmup, torch.get_num_threads(), str(file))
        torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks)
        found = torch.load(file, weights_only=True)
    parts = {
        clock: compare(*([run[number] for run in side] for side in (found["together"], found["alone"])))
        for number, clock in enumerate(CLOCKS)
    }
    return Replay(
        **parts,
        together=len(work.plan.window),
        bytes_gathered=found["bytes"] * found["gathers"],
        bytes_once=found["bytes"],
        gather_s=statistics.median(found["gather"]),
    )


def _rank(rank: int, ranks: int, port: int, work: Work, repetitions: int, warmup: int, threads: int, file: str) -> None:
    torch.set_num_threads(threads)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    size = work.size
    engine = VerlEngine(build_policy(size, work.seed), size, "cpu", torch.float32, reshard=True)
    ours = Ours(engine, build_conditioner(size, work.seed), work)
    samples, advantage_N = ours.sample(ours.encode(rank), rank), work.advantages(rank)
    seconds: dict[int, list[list[float]]] = {1: [], len(work.plan.window): []}
    for repetition in range(warmup + repetitions):
        # Each goes first in every other pair.
        for together in list(seconds)[:: 1 if repetition % 2 else -1]:
            torch.distributed.barrier()
            clocks = [Clock("cpu", processor=name == "processor") for name in CLOCKS]
            ours.update(samples, advantage_N, together)
            for clock in clocks:
                clock.lap("update")
            spent = torch.tensor([clock.seconds["update"] for clock in clocks], dtype=torch.float64)
            torch.distributed.all_reduce(spent)
            # Ranks wait for each other, so that one's time on the wall is all's.
            spent[0] /= ranks
            if repetition >= warmup:
                seconds[together].append(spent.tolist())
    gather = [_gather(engine.inner.module) for _ in range(warmup + repetitions)]
    if rank == 0:
        alone, joined = seconds.values()
        # In every pass forward and back.
        gathers = 2 * work.samples // work.micro * len(work.plan.window)
        weights = 4.0 * sum(weight.numel() for weight in engine.inner.module.parameters()) * (ranks - 1) / ranks
        found = {"alone": alone, "together": joined, "gather": gather[warmup:], "bytes": weights, "gathers": gathers}
        torch.save(found, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _gather(module: Any) -> float:
    """Seconds of gathering every block once, as a forward pass does."""
    torch.distributed.barrier()
    clock = Clock("cpu")
    for block in module.modules():
        if isinstance(block, FSDPModule):
            block.unshard()
            block.reshard()
    clock.lap("gather")
    return clock.seconds["gather"]


def rows(found: Replay, work: Work, ranks: int) -> Sequence[Sequence[str]]:
    """Of a table: one per clock."""
    return [
        [
            f"{found.together} of {work.plan.num_steps}, {work.samples} samples, {work.updates} updates, {ranks} ranks",
            clock,
            f"{part.baseline_median:.3f}",
            f"{part.ours_median:.3f}",
            f"{part.ratio:.2f}",
            f"{part.ratio_low:.2f} to {part.ratio_high:.2f}",
        ]
        for clock, part in (("wall", found.wall), ("processor", found.processor))
    ]
