# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's side of the caption server: lives in every training worker and passes weights on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ray
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.utils import ensure_async_iterator

from verl_uae.caption_server.server import server_name
from verl_uae.caption_server.weights import NamedTensors, send_in_buckets


class HFServerAdapter(BaseRollout):
    """Connects one training rank to the server of its replica.

    Consecutive ranks form a replica; the first of them talks to the server. Weights travel through Ray's object
    store in buckets of ``rollout.checkpoint_engine.update_weights_bucket_megabytes``.

    Args:
        config: verl's rollout config.
        model_config: verl's model config.
        device_mesh: unused; ranks come from the environment, as in verl's own adapters.
        replica_rank: given by standalone checkpoint workers; -1 derives it from the rank.
    """

    def __init__(
        self,
        config: RolloutConfig,
        model_config: HFModelConfig,
        device_mesh: DeviceMesh | None,
        replica_rank: int = -1,
        **_: Any,
    ) -> None:
        # verl itself passes None here for standalone checkpoint workers.
        super().__init__(config, model_config, device_mesh)  # type: ignore[arg-type]
        rank = int(os.environ["RANK"])
        replica_size = (
            self.config.tensor_model_parallel_size
            * self.config.data_parallel_size
            * self.config.pipeline_model_parallel_size
        )
        self.replica_rank = rank // replica_size if replica_rank == -1 else replica_rank
        self.is_leader_rank = rank % replica_size == 0
        self._server: ray.actor.ActorHandle | None = None

    @property
    def server(self) -> ray.actor.ActorHandle:
        """The replica's server. Looked up late: servers start after the training workers."""
        if self._server is None:
            self._server = ray.get_actor(server_name(self.replica_rank))
        return self._server

    async def resume(self, tags: list[str]) -> None:
        """Bring the server's weights back to its device."""
        if self.config.free_cache_engine and self.is_leader_rank:
            await self.server.wake_up.remote(tags=tags)

    async def release(self) -> None:
        """Let the server free its device memory."""
        if self.config.free_cache_engine and self.is_leader_rank:
            await self.server.sleep.remote()

    async def update_weights(
        self,
        weights: Iterator[tuple[str, Tensor]] | AsyncIterator[tuple[str, Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        peft_config: Any = None,
        **_: Any,
    ) -> None:
        """Send all weights to the replica's server. Every rank must call this: the iterator is collective.

        Args:
            weights: (name, full tensor) pairs.
            wire_format: only ``named_tensors``.
            global_steps: trainer step of the weights; None keeps the server's.
            peft_config: set by verl when it sends LoRA adapters instead of merged weights.

        Raises:
            NotImplementedError: another wire format, or unmerged LoRA adapters.
            WeightTransferError: the tensors are not those of the server's model; the message names the tensor.
        """
        if wire_format != "named_tensors":
            raise NotImplementedError(f"rollout.name=hf takes wire_format='named_tensors', got {wire_format!r}")
        if peft_config is not None:
            raise NotImplementedError(
                "rollout.name=hf takes merged weights only: set actor_rollout_ref.model.lora.merge=True"
            )
        bucket_bytes = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        dtype = getattr(torch, self.config.dtype)
        if not self.is_leader_rank:
            await send_in_buckets(ensure_async_iterator(weights), None, bucket_bytes, dtype)
            return
        await self.server.begin_weight_update.remote()
        try:
            await send_in_buckets(ensure_async_iterator(weights), self._deliver, bucket_bytes, dtype)
        except BaseException as error:
            # Whatever stopped the transfer, the server holds a mixture of weights and must not use it.
            await self.server.fail_weight_update.remote(f"{type(error).__name__}: {error}")
            raise
        await self.server.finish_weight_update.remote(global_steps)

    async def _deliver(self, bucket: NamedTensors) -> None:
        await self.server.load_weights.remote(bucket)
