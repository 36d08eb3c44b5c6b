# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where the parts of a G4U run are placed: decoders with the captioner or in a pool of their own, agent loops with the
caption servers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import ray
import transfer_queue as tq
from omegaconf import DictConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayResourcePool, ResourcePoolManager
from verl.trainer.ppo.v1 import AgentLoopManagerTQ

from verl_uae.stages.common.nodes import Ranks, check_nodes
from verl_uae.stages.g4u.caption_loops import CaptionAgentLoopWorker
from verl_uae.stages.g4u.decoder_group import DecoderGroup

#: Key under ``actor_rollout_ref.rollout.custom`` with the nodes of agent loops.
AGENT_LOOP_NODES = "uae_agent_loop_nodes"

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
    agent_loop_nodes: list[str]
    """Those of the captioner."""

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
        planned, pool = self.create_pools(manager)
        self.decoders = DecoderGroup(self.config, pool)
        return planned

    def create_pools(self, manager: ResourcePoolManager) -> tuple[ResourcePoolManager, RayResourcePool]:
        """The pools of the run, and that of its decoders among them; see :meth:`start_decoders`."""
        decoder = self.config.uae.decoder
        spec, name = dict(manager.resource_pool_spec), "global_pool"
        if decoder.pool == "own":
            name = _OWN_POOL
            spec[name] = [decoder.n_gpus_per_node] * decoder.nnodes
        planned = ExistingPools(resource_pool_spec=spec, mapping=manager.mapping)
        planned.create_resource_pool()
        pools = planned.resource_pool_dict
        # The captioner's first: with its own pool behind it, a node is left to the one that needs all of it.
        captioner = Ranks("captioner ranks", pools["global_pool"], writes=True)
        nodes = check_nodes(self.config, [captioner, Ranks("decoder ranks", pools[name], writes=False)])
        self.agent_loop_nodes = list(dict.fromkeys(nodes[captioner.name]))
        return planned, pools[name]

    @staticmethod
    def discard(batch: KVBatchMeta) -> None:
        """Remove samples from the TransferQueue."""
        tq.kv_clear(keys=batch.keys, partition_id=batch.partition_id)


class CaptionAgentLoops(AgentLoopManagerTQ):
    """verl's manager of agent loops, with workers for captions. verl spreads them over the cluster: here they are on
    the nodes of the captioner, beside the caption servers, so that a node with decoders alone takes no caption with
    it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class: Any = ray.remote(CaptionAgentLoopWorker)

    def settle(self, timeout_s: float) -> None:
        """Return when no worker has a caption to write, or is dead; or after ``timeout_s`` seconds."""
        calls = [worker.settle.remote() for worker in self.agent_loop_workers]
        ray.wait(calls, num_returns=len(calls), timeout=timeout_s)

    async def _init_agent_loop_workers(self) -> None:
        nodes = (self.rollout_config.get("custom") or {}).get(AGENT_LOOP_NODES)
        if nodes:
            self.agent_loop_workers_class = _Placed(self.agent_loop_workers_class, list(nodes))
        await super()._init_agent_loop_workers()


class _Placed:
    """A class of Ray actors that go to nodes in turn, wherever their options say.

    Args:
        actors: the class.
        nodes: Ray's ids.
    """

    def __init__(self, actors: Any, nodes: Sequence[str]) -> None:
        self._actors, self._nodes = actors, itertools.cycle(nodes)

    def options(self, **options: Any) -> Any:
        """The class with these options, but for the node."""
        place = NodeAffinitySchedulingStrategy(node_id=next(self._nodes), soft=True)
        return self._actors.options(**{**options, "scheduling_strategy": place})
