# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from verl_uae.caption_server.server import BatchQueue


class Recorder:
    """Doubles its items after a pause, and remembers the batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.seconds = seconds

    async def __call__(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        await asyncio.sleep(self.seconds)
        if 13 in items:
            raise RuntimeError("batch of thirteen")
        return [ValueError(f"item {item}") if item < 0 else 2 * item for item in items]


def test_full_batches_start_at_once_and_the_rest_after_a_quiet_time() -> None:
    async def run() -> tuple[list[int], list[list[int]]]:
        recorder = Recorder()
        queue = BatchQueue(recorder, max_batch_size=4, wait_seconds=0.05)
        return await asyncio.gather(*[queue.submit(item) for item in range(10)]), recorder.batches

    results, batches = asyncio.run(run())
    assert results == [2 * item for item in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_arrivals_prolong_the_wait() -> None:
    async def run() -> list[list[int]]:
        recorder = Recorder()
        queue = BatchQueue(recorder, max_batch_size=100, wait_seconds=0.2)
        tasks = []
        for item in range(4):
            tasks.append(asyncio.create_task(queue.submit(item)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)
        return recorder.batches

    assert asyncio.run(run()) == [[0, 1, 2, 3]]


def test_one_batch_at_a_time() -> None:
    async def run() -> list[list[int]]:
        recorder = Recorder(seconds=0.1)
        queue = BatchQueue(recorder, max_batch_size=2, wait_seconds=0.0)
        first = [asyncio.create_task(queue.submit(item)) for item in (0, 1)]
        await asyncio.sleep(0.05)
        later = [asyncio.create_task(queue.submit(item)) for item in (2, 3)]
        await asyncio.sleep(0.02)
        assert recorder.batches == [[0, 1]]
        await asyncio.gather(*first, *later)
        return recorder.batches

    assert asyncio.run(run()) == [[0, 1], [2, 3]]


def test_errors_reach_their_callers_and_the_queue_goes_on() -> None:
    async def run() -> None:
        queue = BatchQueue(Recorder(), max_batch_size=2, wait_seconds=0.0)
        results = await asyncio.gather(queue.submit(-1), queue.submit(5), return_exceptions=True)
        assert isinstance(results[0], ValueError) and results[1] == 10
        results = await asyncio.gather(queue.submit(13), queue.submit(5), return_exceptions=True)
        assert [str(result) for result in results] == ["batch of thirteen"] * 2
        assert await queue.submit(4) == 8

    asyncio.run(run())


def test_closing_holds_items_back_until_every_reason_is_gone() -> None:
    async def run() -> None:
        queue = BatchQueue(Recorder(), max_batch_size=1, wait_seconds=0.0)
        queue.close("weights")
        queue.close("abort")
        task = asyncio.create_task(queue.submit(1))
        queue.open("weights")
        await asyncio.sleep(0.02)
        assert not task.done()
        queue.open("abort")
        assert await task == 2
        queue.close("abort")
        task = asyncio.create_task(queue.submit(1))
        await asyncio.sleep(0)
        assert queue.resolve_pending(-7) == [1] and await task == -7

    asyncio.run(run())


def test_a_cancelled_caller_leaves_the_queue() -> None:
    async def run() -> list[list[int]]:
        recorder = Recorder()
        queue = BatchQueue(recorder, max_batch_size=4, wait_seconds=0.05)
        gone, stays = asyncio.create_task(queue.submit(1)), asyncio.create_task(queue.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 4
        with pytest.raises(asyncio.CancelledError):
            await gone
        return recorder.batches

    assert asyncio.run(run()) == [[2]]
