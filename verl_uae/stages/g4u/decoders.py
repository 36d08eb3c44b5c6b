# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What every trainer with decoder workers shares."""

from __future__ import annotations

import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import ResourcePoolManager

from verl_uae.stages.g4u.decoder_group import DecoderGroup

_OWN_POOL = "uae_decoder_pool"


class ExistingPools(ResourcePoolManager):
    """Creates its pools once: verl's set-up asks again after the decoders have taken their places."""

    def create_resource_pool(self) -> None:
        if not self.resource_pool_dict:
            super().create_resource_pool()


class DecoderMixin:
    """Places and starts the decoder workers of ``uae.decoder``."""

    config: DictConfig
    decoders: DecoderGroup

    @property
    def streamed(self) -> bool:
        """Whether captions are decoded as they arrive."""
        return self.config.uae.decoder.schedule == "streamed"

    def start_decoders(self, manager: ResourcePoolManager) -> ResourcePoolManager:
        """Start the decoder workers in the places that verl's own workers will share with them.

        Args:
            manager: verl's plan of pools; with ``uae.decoder.pool=own`` a pool for the decoders is added.

        Returns:
            The manager to use from here on: its pools exist, and are not made a second time.
        """
        decoder = self.config.uae.decoder
        spec, name = dict(manager.resource_pool_spec), "global_pool"
        if decoder.pool == "own":
            name = _OWN_POOL
            spec[name] = [decoder.n_gpus_per_node] * decoder.nnodes
        planned = ExistingPools(resource_pool_spec=spec, mapping=manager.mapping)
        planned.create_resource_pool()
        self.decoders = DecoderGroup(self.config, planned.resource_pool_dict[name])
        return planned

    @staticmethod
    def discard(batch: KVBatchMeta) -> None:
        """Remove samples from the TransferQueue."""
        tq.kv_clear(keys=batch.keys, partition_id=batch.partition_id)
