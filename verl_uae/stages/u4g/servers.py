# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions of U4G by verl's rollout servers: vLLM on a GPU, transformers on a CPU.

The servers stand in the places of the ranks that train the decoder, as verl's replicas do that judge rewards (its mode
``colocated``): they load the captioner's files themselves, and are asleep but while they write.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from omegaconf import DictConfig
from ray.exceptions import RayTaskError
from verl.single_controller.ray import RayResourcePool
from verl.single_controller.ray.base import split_resource_pool
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.replica import get_rollout_replica_class

from verl_uae.caption_server.types import CaptionRequest, CaptionResult
from verl_uae.captioners import as_vllm_takes
from verl_uae.chain.captioner import eos_token_ids
from verl_uae.chain.records import Caption
from verl_uae.chain.vllm_captioner import token_limits
from verl_uae.checkpoints.load import load_config, load_generation, load_processor
from verl_uae.stages.common.captions import CaptionSettings, CaptionWriter, Messages

logger = logging.getLogger(__name__)


class CaptionServers:
    """Rollout servers of the captioner beside the decoder's ranks.

    Args:
        config: the whole composed configuration; ``actor_rollout_ref.rollout`` says what serves, and on how many ranks.
        pool: verl resource pool of the decoder's ranks.
        settings: how captions are written.
    """

    def __init__(self, config: DictConfig, pool: RayResourcePool, settings: CaptionSettings) -> None:
        rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
        processor, captioner = load_processor(model.path), load_config(model.path)
        generation = load_generation(model.path)
        self.writer = CaptionWriter(
            processor, captioner.model_type, eos_token_ids(generation, processor.tokenizer), settings
        )
        # The servers of rollout.name=hf need neither.
        self.prompt_ids: Callable[[Sequence[int]], list[int]] = list
        self.sampling: dict[str, Any] = {}
        if rollout.name != "hf":
            self.prompt_ids = partial(as_vllm_takes, processor)
            self.sampling = token_limits(captioner, generation, processor.tokenizer)
        self.dtype = rollout.dtype
        pools = split_resource_pool(pool, split_size=ranks_of_server(rollout))
        kind = get_rollout_replica_class(rollout.name)
        self.replicas = [
            kind(
                replica_rank=rank,
                config=rollout,
                model_config=omega_conf_to_dataclass(model),
                gpus_per_node=config.trainer.n_gpus_per_node,
            )
            for rank in range(len(pools))
        ]
        _together([replica.init_colocated(part) for replica, part in zip(self.replicas, pools, strict=True)])
        self._sleep()
        logger.info("%d caption servers by %s, asleep", len(self.replicas), rollout.name)

    def write_captions(self, prompts: Sequence[Messages], infos: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """Captions of all prompts with the ``extra_info`` of their rows, in order; see :class:`CaptionWriter`.

        Raises:
            RayActorError: a server died.
            FloatingPointError: the model's logits are not finite, which is no picture's fault.
        """
        return self.writer.write(prompts, infos, self._generate)

    def _generate(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult | Exception]:
        if not requests:
            return []
        _together([replica.wake_up() for replica in self.replicas])
        try:
            return _together([self._ask(number, request) for number, request in enumerate(requests)])
        finally:
            self._sleep()

    async def _ask(self, number: int, request: CaptionRequest) -> CaptionResult | Exception:
        server: Any = self.replicas[number % len(self.replicas)].server_handle
        settings = {"temperature": request.temperature, "seed": request.seed, "top_p": 1.0, "top_k": -1}
        settings |= {"logprobs": True, **self.sampling}
        try:
            output = await server.generate.remote(
                request_id=f"{request.request_id}-{number}",
                prompt_ids=self.prompt_ids(request.prompt_ids),
                sampling_params=settings,
                image_data=list(request.images),
                mm_processor_kwargs=dict(request.processor_kwargs),
            )
        except RayTaskError as error:
            # Raised in the server: it costs this caption, as in the agent loop of G4U. A server that died is no such.
            return error.cause if isinstance(error.cause, Exception) else error
        ids, log_probs = [int(token) for token in output.token_ids], list(output.log_probs or ())
        if not ids:
            return ValueError(f"no token: {output.stop_reason}")
        if not all(map(math.isfinite, log_probs)):
            raise FloatingPointError(f"the captioner's logits are not finite in {self.dtype}")
        return CaptionResult(ids, log_probs, "completed")

    def _sleep(self) -> None:
        _together([replica.sleep() for replica in self.replicas])

    def named(self) -> list[tuple[str, ray.actor.ActorHandle]]:
        """Names and handles of the servers."""
        return [(f"caption server {number}", replica.server_handle) for number, replica in enumerate(self.replicas)]


def ranks_of_server(rollout: DictConfig) -> int:
    """Ranks that one server takes."""
    sizes = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size")
    ranks = 1
    for name in sizes:
        ranks *= int(rollout[name])
    return ranks


def _together(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    async def gather() -> list[Any]:
        return list(await asyncio.gather(*work))

    return asyncio.run(gather())
