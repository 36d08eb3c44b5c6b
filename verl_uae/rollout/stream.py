# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Streamed schedule: captions go to decoders while others are still being written."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray

from verl_uae.rollout.chain import ChainRequest
from verl_uae.rollout.sample import Outcome, failed_outcome

logger = logging.getLogger(__name__)

#: Seconds between two questions whether a dead decoder is back.
POLL_S = 1.0


class StreamClient:
    """Collects captions into micro-batches with a bounded wait and sends each to the least busy decoder.

    A decoder that dies costs what it was working on. Until Ray has started it again it gets nothing: an idle one would
    look the least busy, and every caption that is left would fail on it. Where all are away, captions wait.

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
        self.usable = set(range(len(self.handles)))
        self.returning: dict[int, asyncio.Task[None]] = {}
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
        rank = await self._least_busy()
        if rank is None:
            self._answer(batch, [failed_outcome("error", "every decoder rank is dead") for _ in batch])
            return
        self.busy[rank] += len(batch)
        outcomes: list[Any]
        try:
            outcomes = await self.handles[rank].score_requests.remote([request for request, _ in batch])
        except ray.exceptions.RayError as error:
            reason = f"decoder rank {rank}: {type(error).__name__}"
            outcomes = [failed_outcome("error", reason) for _ in batch]
            if isinstance(error, ray.exceptions.RayActorError):
                self._set_aside(rank)
        finally:
            self.busy[rank] -= len(batch)
        self._answer(batch, outcomes)

    @staticmethod
    def _answer(batch: list[tuple[ChainRequest, asyncio.Future[Outcome]]], outcomes: list[Any]) -> None:
        for (_, future), result in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(result)

    async def _least_busy(self) -> int | None:
        """Of the usable decoders; None if none will ever be."""
        while not self.usable:
            if not self.returning:
                return None
            await asyncio.wait(list(self.returning.values()), return_when=asyncio.FIRST_COMPLETED)
        return min(self.usable, key=self.busy.__getitem__)

    def _set_aside(self, rank: int) -> None:
        self.usable.discard(rank)
        if rank not in self.returning:
            logger.error("decoder rank %d died; captions go to the others until it is back", rank)
            self.returning[rank] = asyncio.get_running_loop().create_task(self._await_return(rank))

    async def _await_return(self, rank: int) -> None:
        """Until a decoder answers again, or is dead for good."""
        try:
            while True:
                try:
                    if await self.handles[rank].ready.remote():
                        self.usable.add(rank)
                        return
                except (ray.exceptions.ActorDiedError, ray.exceptions.RayTaskError) as error:
                    logger.error("decoder rank %d does not come back: %s", rank, error)
                    return
                except ray.exceptions.RayError:
                    # Ray answers so while the process is being started.
                    pass
                await asyncio.sleep(POLL_S)
        finally:
            del self.returning[rank]
