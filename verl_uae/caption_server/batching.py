# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Gathers concurrent requests into batches. Pure asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class BatchQueue(Generic[ItemT, ResultT]):
    """Runs submitted items in batches, one batch at a time, first come first served.

    A batch starts when it is full, or when nothing has arrived for ``wait_seconds``.

    Args:
        run_batch: returns one result per item; an exception among the results fails that item alone, a raised
            one fails the batch.
        max_batch_size: most items of a batch.
        wait_seconds: quiet time after which an incomplete batch starts.
    """

    def __init__(
        self,
        run_batch: Callable[[list[ItemT]], Awaitable[Sequence[ResultT | Exception]]],
        max_batch_size: int,
        wait_seconds: float,
    ) -> None:
        self._run_batch = run_batch
        self._max_batch_size = max_batch_size
        self._wait_seconds = wait_seconds
        self._pending: list[tuple[ItemT, asyncio.Future[ResultT]]] = []
        self._closed_by: set[str] = set()
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: ItemT) -> ResultT:
        """Queue an item and wait for its result."""
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        return await future

    def close(self, reason: str) -> None:
        """Start no further batch until :meth:`open` is called with the same reason; items wait in the queue."""
        self._closed_by.add(reason)
        self._changed.set()

    def open(self, reason: str) -> None:
        """Undo :meth:`close`; batches start again when no reason is left."""
        self._closed_by.discard(reason)
        self._changed.set()

    async def idle(self) -> None:
        """Wait for the running batch, if there is one, to end."""
        await self._idle.wait()

    def resolve_pending(self, result: ResultT) -> list[ItemT]:
        """Answer all waiting items with ``result`` and return them."""
        pending, self._pending = self._pending, []
        for _, future in pending:
            if not future.done():
                future.set_result(result)
        return [item for item, _ in pending]

    async def _serve(self) -> None:
        while True:
            await self._batch_due()
            batch, self._pending = self._pending[: self._max_batch_size], self._pending[self._max_batch_size :]
            # Futures of callers that have gone are cancelled.
            batch = [(item, future) for item, future in batch if not future.done()]
            if batch:
                await self._run(batch)

    async def _run(self, batch: list[tuple[ItemT, asyncio.Future[ResultT]]]) -> None:
        results: Sequence[ResultT | Exception]
        self._idle.clear()
        try:
            results = await self._run_batch([item for item, _ in batch])
        # A fault boundary: the error belongs to the callers of this batch, the queue must go on.
        except Exception as error:
            results = [error] * len(batch)
        finally:
            self._idle.set()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _batch_due(self) -> None:
        while True:
            self._changed.clear()
            if not self._pending or self._closed_by:
                await self._changed.wait()
            elif len(self._pending) >= self._max_batch_size:
                return
            else:
                try:
                    await asyncio.wait_for(self._changed.wait(), self._wait_seconds)
                except asyncio.TimeoutError:
                    return
