# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The caption server: verl's rollout-server contract around :class:`~verl_uae.caption_server.engine.CaptionEngine`.

Concurrent requests are gathered into batches on its event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
import torch
from torch import Tensor
from verl.utils.fs import copy_to_local
from verl.utils.tokenizer import normalize_token_ids
from verl.workers.rollout.replica import TokenOutput

from verl_uae.caption_server.engine import CaptionEngine
from verl_uae.caption_server.types import CaptionRequest, CaptionResult, HFOptions
from verl_uae.caption_server.weights import WeightReceiver, WeightTransferError
from verl_uae.seeding import derive_seed

logger = logging.getLogger(__name__)


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


ReturnT = TypeVar("ReturnT")


def server_name(replica_rank: int) -> str:
    """Ray actor name of a replica's server: unique per Ray job, and the same in all processes of a job."""
    return f"uae_caption_server_{ray.get_runtime_context().get_job_id()}_{replica_rank}"


@dataclass(frozen=True)
class ServerConfig:
    """What a server needs to start; picklable.

    Attributes:
        model_path: transformers folder, local or remote.
        prompt_length: longest prompt in tokens.
        response_length: longest caption in tokens.
        dtype: name of a torch dtype, e.g. ``float32``.
        device: torch device type.
        visible_devices: (environment variable, value) that selects the accelerator, or None.
        seed: names the captions of requests that bring no seed.
        ignore_eos: default of requests that do not say.
        offload_on_sleep: free the accelerator's memory while the trainer works.
        options: see :class:`HFOptions`.
    """

    model_path: str
    prompt_length: int
    response_length: int
    dtype: str = "float32"
    device: str = "cpu"
    visible_devices: tuple[str, str] | None = None
    seed: int = 0
    ignore_eos: bool = False
    offload_on_sleep: bool = False
    options: HFOptions = field(default_factory=HFOptions)


class CaptionServer:
    """Ray actor that serves captions.

    Concurrent requests are gathered into batches. The model is touched by one worker thread only, in order, so
    generation, weight updates and moves between devices never overlap, and the actor's event loop stays free.
    """

    def __init__(self, config: ServerConfig) -> None:
        options = config.options
        if config.visible_devices is not None:
            os.environ[config.visible_devices[0]] = config.visible_devices[1]
        torch.set_num_threads(options.num_threads)
        self.config = config
        self.engine = CaptionEngine(
            copy_to_local(config.model_path),
            config.prompt_length,
            config.response_length,
            dtype=getattr(torch, config.dtype),
            device=config.device,
            max_batch_size=options.max_batch_size,
            prefill_batch_size=options.prefill_batch_size,
            attn_implementation=options.attn_implementation,
            fixed_shapes=options.fixed_shapes,
        )
        self.global_steps = 0
        self._receiver = WeightReceiver(self.engine.model)
        self._worker = ThreadPoolExecutor(1, "caption", torch.set_num_threads, (options.num_threads,))
        self._queue: BatchQueue[CaptionRequest, tuple[CaptionResult, int]] = BatchQueue(
            self._run_batch, options.max_batch_size, options.batch_wait_ms / 1000
        )
        self._cancel = threading.Event()
        self._rejecting = False
        self._asleep = False
        self._broken = ""

    async def generate(
        self,
        request_id: str,
        *,
        prompt_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        image_data: Sequence[Any] | None = None,
        video_data: Sequence[Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        **unsupported: Any,
    ) -> TokenOutput:
        """Generate one caption.

        A request without a seed gets one derived from the server's seed, the global step and its request id.

        Args:
            request_id: names the request.
            prompt_ids: prompt tokens, image placeholders expanded.
            sampling_params: see :meth:`CaptionRequest.from_sampling_params`; ``logprobs`` asks for log-probs.
            image_data: PIL images of the prompt.
            video_data: must be empty.
            mm_processor_kwargs: extra arguments of the image processor.
            priority: accepted and ignored; requests are served in order of arrival.

        Raises:
            CaptionRequestError: this request cannot be served.
            WeightTransferError: the last weight update failed.
        """
        request = CaptionRequest.from_sampling_params(
            {name: value for name, value in sampling_params.items() if name != "logprobs"},
            prompt_ids=normalize_token_ids(prompt_ids),
            default_seed=derive_seed(self.config.seed, "caption", self.global_steps, str(request_id)),
            default_ignore_eos=self.config.ignore_eos,
            images=tuple(image_data or ()),
            processor_kwargs=dict(mm_processor_kwargs or {}),
            request_id=str(request_id),
        )
        given = sorted(name for name, value in {"video_data": video_data, **unsupported}.items() if value)
        if given:
            raise request.error(f"the caption server takes images only, got {given}")
        if self._rejecting:
            result, step = CaptionResult([], [], "aborted"), self.global_steps
        else:
            result, step = await self._queue.submit(request)
        return TokenOutput(
            token_ids=result.token_ids,
            log_probs=result.log_probs if sampling_params.get("logprobs") else None,
            stop_reason=result.stop_reason,
            extra_fields={"global_steps": step},
        )

    async def _run_batch(self, requests: list[CaptionRequest]) -> Sequence[tuple[CaptionResult, int] | Exception]:
        if self._broken:
            raise WeightTransferError(f"captions are refused since a weight update failed: {self._broken}")
        if self._asleep:
            raise RuntimeError("the caption server is asleep, its weights are not on the device; call wake_up first")
        step = self.global_steps
        results = await self._in_worker(self.engine.generate, requests, self._cancel.is_set)
        return [result if isinstance(result, Exception) else (result, step) for result in results]

    async def update_weights(self, named_tensors: Sequence[tuple[str, Tensor]], global_steps: int | None = None) -> int:
        """Replace all weights at once; see :meth:`begin_weight_update` for the way in buckets."""
        await self.begin_weight_update()
        await self.load_weights(named_tensors)
        return await self.finish_weight_update(global_steps)

    async def begin_weight_update(self) -> None:
        """Hold back generation and expect :meth:`load_weights` calls, then :meth:`finish_weight_update`."""
        self._queue.close("weights")
        await self._queue.idle()
        await self._in_worker(self._receiver.begin)

    async def load_weights(self, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Load one bucket.

        Raises:
            WeightTransferError: see :meth:`WeightReceiver.load`. Captions are refused from then on, until an
                update succeeds.
        """
        try:
            await self._in_worker(self._receiver.load, named_tensors)
        except WeightTransferError as error:
            await self.fail_weight_update(str(error))
            raise

    async def finish_weight_update(self, global_steps: int | None = None) -> int:
        """End the update, resume generation and return the number of tensors.

        Args:
            global_steps: trainer step of the new weights. None keeps the old one: verl's validation path updates
                weights without naming a step.

        Raises:
            WeightTransferError: tensors are missing; captions are refused until an update succeeds.
        """
        try:
            count = await self._in_worker(self._receiver.finish)
        except WeightTransferError as error:
            await self.fail_weight_update(str(error))
            raise
        self._broken = ""
        if global_steps is not None:
            self.global_steps = int(global_steps)
        self._queue.open("weights")
        return count

    async def fail_weight_update(self, reason: str) -> None:
        """Give an update up: the weights are a mixture, so captions are refused until an update succeeds."""
        logger.error("weight update failed: %s", reason)
        self._broken = reason
        self._queue.open("weights")

    async def set_global_steps(self, global_steps: int) -> None:
        """Set the step reported with captions."""
        self.global_steps = int(global_steps)

    async def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Bring the weights back to the device. ``tags`` of a KV cache alone do nothing: none outlives a batch."""
        if self._asleep and (tags is None or "weights" in tags):
            await self._in_worker(self.engine.to, self.config.device)
            self._asleep = False

    async def sleep(self) -> None:
        """Free the accelerator's memory, once the running batch has ended."""
        if not self.config.offload_on_sleep or self.config.device == "cpu":
            return
        await self._queue.idle()
        self._asleep = True
        await self._in_worker(self.engine.to, "cpu")
        getattr(torch, self.config.device).empty_cache()

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, Any]:
        """End the running batch, answer the waiting requests as aborted, and hold back later ones.

        Args:
            reject_request: answer later requests as aborted too, instead of holding them until
                :meth:`resume_generation`.

        Returns:
            ``aborted_count`` and ``request_ids`` of the requests that had not started.
        """
        self._rejecting = reject_request
        self._queue.close("abort")
        waiting = self._queue.resolve_pending((CaptionResult([], [], "aborted"), self.global_steps))
        self._cancel.set()
        await self._queue.idle()
        self._cancel.clear()
        return {"aborted_count": len(waiting), "request_ids": [request.request_id for request in waiting]}

    async def resume_generation(self) -> None:
        """Undo :meth:`abort_all_requests`."""
        self._rejecting = False
        self._queue.open("abort")

    async def clear_kv_cache(self) -> None:
        """Nothing to do: no cache outlives a batch."""

    async def release_kv_cache(self) -> None:
        """Nothing to do: no cache outlives a batch."""

    async def resume_kv_cache(self) -> None:
        """Nothing to do: no cache outlives a batch."""

    async def start_profile(self, **kwargs: Any) -> None:
        """Not supported; accepted so that the trainer's profiler can run."""

    async def stop_profile(self) -> None:
        """Not supported; accepted so that the trainer's profiler can run."""

    async def ready(self) -> dict[str, Any]:
        """Answer once the model is loaded: pid, device and number of parameters."""
        parameters = sum(parameter.numel() for parameter in self.engine.model.parameters())
        return {"pid": os.getpid(), "device": str(self.engine.device), "parameters": parameters}

    async def _in_worker(self, function: Callable[..., ReturnT], *args: Any) -> ReturnT:
        return await asyncio.get_running_loop().run_in_executor(self._worker, functools.partial(function, *args))
