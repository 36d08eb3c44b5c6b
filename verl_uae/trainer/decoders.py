# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What every trainer with decoder workers shares."""

from __future__ import annotations

import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import ResourcePoolManager

from verl_uae.rollout.decoder_group import DecoderGroup

_OWN_POOL = "uae_decoder_pool"


class DecoderMixin:
    """Places and starts the decoder workers of ``uae.decoder``."""

    config: DictConfig
    decoders: DecoderGroup

    @property
    def streamed(self) -> bool:
        """Whether captions are decoded as they arrive."""
        return self.config.uae.decoder.schedule == "streamed"

    def add_decoder_pool(self, manager: ResourcePoolManager) -> None:
        """Reserve GPUs of their own for the decoders, if ``uae.decoder.pool=own``; before the pools are created."""
        decoder = self.config.uae.decoder
        if decoder.pool == "own":
            manager.resource_pool_spec[_OWN_POOL] = [decoder.n_gpus_per_node] * decoder.nnodes

    def start_decoders(self, manager: ResourcePoolManager) -> None:
        """Start the workers and load their models."""
        name = _OWN_POOL if self.config.uae.decoder.pool == "own" else "global_pool"
        self.decoders = DecoderGroup(self.config, manager.resource_pool_dict[name])

    @staticmethod
    def discard(batch: KVBatchMeta) -> None:
        """Remove samples from the TransferQueue."""
        tq.kv_clear(keys=batch.keys, partition_id=batch.partition_id)
