# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Streamed schedule: captions go to decoders while others are still being written."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from verl_uae.chain.records import Draw, Outcome
from verl_uae.errors import DecoderError
from verl_uae.reward.record import Status

logger = logging.getLogger(__name__)

#: Seconds between two questions whether a dead decoder is back.
POLL_S = 1.0

#: Captions that may wait for their outcome at a time; more wait in Ray.
MAX_WAITING = 100_000


@dataclass(slots=True)
class _Waiting:
    """A caption that no decoder has yet."""

    draw: Draw
    answer: asyncio.Future[Outcome]
    due: float
    """When it has waited enough, on the loop's clock."""


class StreamQueue:
    """Collects the captions of all agent loops and shares them out among the decoders that have nothing to do.

    While every decoder is at work captions go on collecting: a micro-batch that left earlier would only wait elsewhere,
    and be smaller.

    A decoder that dies or does not answer in time costs what it was working on. Until it answers again it gets nothing;
    the controller replaces it after the step. Where all are away, captions wait.

    Args:
        actors: Ray names of decoder workers.
        max_batch: captions per micro-batch.
        max_wait_s: longest time the first caption of a micro-batch waits for company while a decoder is idle, seconds.
        timeout_s: longest time a decoder may take for a micro-batch.
    """

    def __init__(self, actors: Sequence[str], max_batch: int, max_wait_s: float, timeout_s: float) -> None:
        self.handles = [ray.get_actor(name) for name in actors]
        self.idle = deque(range(len(self.handles)))
        self.returning: dict[int, asyncio.Task[None]] = {}
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.timeout_s = timeout_s
        self.pending: deque[_Waiting] = deque()
        self.working = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def score(self, draw: Draw) -> Outcome:
        """Redraw and score one caption; never raises for a fault of the decoder, which is an outcome."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(draw, loop.create_future(), loop.time() + self.max_wait_s)
        self.pending.append(waiting)
        loop.call_at(waiting.due, self._dispatch)
        self._dispatch()
        return await waiting.answer

    def _dispatch(self) -> None:
        """Once a micro-batch is full, or its first caption has waited enough: give to the idle decoders.

        Each gets its part of what waits, counting those at work: one that took all would leave the next ones nothing.
        """
        now = asyncio.get_running_loop().time()
        full_or_due = self.pending and (len(self.pending) >= self.max_batch or self.pending[0].due <= now)
        if full_or_due and self.idle:
            # Of the round, not of what a round has left: the second of two idle decoders gets as much as the first.
            share = math.ceil(len(self.pending) / (len(self.idle) + self.working))
            while self.pending and self.idle:
                batch = [self.pending.popleft() for _ in range(min(share, self.max_batch, len(self.pending)))]
                self.working += 1
                self._start(self._send(self.idle.popleft(), batch))
        if not self.idle and not self.working and not self.returning:
            self._answer(self.pending, [Outcome.failed(Status.ERROR, "every decoder rank is dead")] * len(self.pending))
            self.pending.clear()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _send(self, rank: int, batch: Sequence[_Waiting]) -> None:
        outcomes: list[Outcome]
        try:
            answer: Any = self.handles[rank].redraw.remote([waiting.draw for waiting in batch])
            outcomes = await asyncio.wait_for(answer, self.timeout_s)
            self.idle.append(rank)
        except asyncio.TimeoutError:
            reason = f"decoder rank {rank}: no answer in {self.timeout_s:g} s"
            outcomes = [Outcome.failed(Status.TIMEOUT, reason)] * len(batch)
            self._set_aside(rank, "does not answer")
        except ray.exceptions.RayError as error:
            reason = f"decoder rank {rank}: {type(error).__name__}"
            outcomes = [Outcome.failed(Status.ERROR, reason)] * len(batch)
            # The second comes of a rank that died idle and is back without the weights that were sent to it.
            if isinstance(error, (ray.exceptions.RayActorError, DecoderError)):
                self._set_aside(rank, "died")
            else:
                self.idle.append(rank)
        finally:
            self.working -= 1
        self._answer(batch, outcomes)
        self._dispatch()

    @staticmethod
    def _answer(batch: Iterable[_Waiting], outcomes: Sequence[Any]) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(outcome)

    def _set_aside(self, rank: int, reason: str) -> None:
        logger.error("decoder rank %d %s; captions go to the others until it is back", rank, reason)
        self.returning[rank] = self._start(self._await_return(rank))

    async def _await_return(self, rank: int) -> None:
        """Until a decoder answers again, or is dead for good."""
        try:
            while True:
                try:
                    if await self.handles[rank].ready.remote():
                        self.idle.append(rank)
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
            self._dispatch()


class StreamDispatcher:
    """The queue as a Ray actor: one for all agent-loop processes, so that it sees how busy every decoder is.

    Args:
        actors: see :class:`StreamQueue`, as the other two.
        max_batch: see there.
        max_wait_s: see there.
        timeout_s: see there.
    """

    def __init__(self, actors: Sequence[str], max_batch: int, max_wait_s: float, timeout_s: float) -> None:
        self.queue = StreamQueue(actors, max_batch, max_wait_s, timeout_s)

    async def score(self, draw: Draw) -> Outcome:
        """See :meth:`StreamQueue.score`."""
        return await self.queue.score(draw)


def start_dispatcher(name: str, actors: Sequence[str], max_batch: int, max_wait_s: float, timeout_s: float) -> Any:
    """Start the dispatcher of a run under a Ray name; its handle keeps it alive.

    Should its process die, Ray starts another, and sends it what was not answered again: drawing twice changes nothing.
    """
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_concurrency": MAX_WAITING,
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    actor = ray.remote(StreamDispatcher).options(name=name, **options)
    return actor.remote(list(actors), max_batch, max_wait_s, timeout_s)


class StreamClient:
    """What a process of agent loops asks.

    Args:
        dispatcher: Ray name of the dispatcher.
    """

    def __init__(self, dispatcher: str) -> None:
        self._dispatcher = ray.get_actor(dispatcher)

    async def score(self, draw: Draw) -> Outcome:
        """Redraw and score one caption; never raises for a fault of decoder or dispatcher, which is an outcome."""
        try:
            return await self._dispatcher.score.remote(draw)
        except ray.exceptions.RayError as error:
            return Outcome.failed(Status.ERROR, f"dispatcher of the streamed schedule: {type(error).__name__}")


@functools.cache
def stream_client(dispatcher: str) -> StreamClient:
    """The client of this process."""
    return StreamClient(dispatcher)
