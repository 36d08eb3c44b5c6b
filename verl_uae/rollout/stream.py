# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Streamed schedule: captions go to decoders while others are still being written."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from verl_uae.rollout.chain import ChainRequest
from verl_uae.rollout.sample import Outcome, failed_outcome


class StreamClient:
    """Collects captions into micro-batches with a bounded wait and sends each to the least busy decoder.

    Lives on the event loop of one agent-loop worker.

    Args:
        actors: Ray names of decoder workers.
        max_batch: captions per micro-batch.
        max_wait_s: longest time the first caption of a micro-batch waits for company, seconds.
    """

    _shared: StreamClient | None = None

    def __init__(self, actors: tuple[str, ...], max_batch: int, max_wait_s: float) -> None:
        self.handles = [ray.get_actor(name) for name in actors]
        self.busy = [0] * len(self.handles)
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.pending: list[tuple[ChainRequest, asyncio.Future[Outcome]]] = []
        self.timer: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def shared(cls, actors: tuple[str, ...], max_batch: int, max_wait_s: float) -> StreamClient:
        """The client of this process, made on first use."""
        if cls._shared is None:
            cls._shared = cls(actors, max_batch, max_wait_s)
        return cls._shared

    async def score(self, request: ChainRequest) -> Outcome:
        """Redraw and score one caption; never raises for a fault of the decoder, which is an outcome."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self.pending.append((request, future))
        if len(self.pending) >= self.max_batch:
            self._flush()
        elif self.timer is None:
            self.timer = loop.call_later(self.max_wait_s, self._flush)
        return await future

    def _flush(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        batch, self.pending = self.pending[: self.max_batch], self.pending[self.max_batch :]
        if not batch:
            return
        task = asyncio.get_running_loop().create_task(self._send(batch))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if self.pending:
            self._flush()

    async def _send(self, batch: list[tuple[ChainRequest, asyncio.Future[Outcome]]]) -> None:
        rank = min(range(len(self.busy)), key=self.busy.__getitem__)
        self.busy[rank] += len(batch)
        outcomes: list[Any]
        try:
            outcomes = await self.handles[rank].score_requests.remote([request for request, _ in batch])
        except ray.exceptions.RayError as error:
            reason = f"decoder rank {rank}: {type(error).__name__}"
            outcomes = [failed_outcome("error", reason) for _ in batch]
        finally:
            self.busy[rank] -= len(batch)
        for (_, future), result in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(result)
