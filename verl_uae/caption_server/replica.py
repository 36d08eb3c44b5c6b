# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's replica of rollout name ``hf``: starts one caption server per replica, next to its first worker."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.plugin.platform import get_platform
from verl.utils.device import get_device_name, get_resource_name, get_visible_devices_keyword
from verl.workers.rollout.replica import RolloutMode, RolloutReplica

from verl_uae.caption_server.server import CaptionServer, ServerConfig, server_name
from verl_uae.caption_server.types import HFOptions
from verl_uae.errors import ConfigError
from verl_uae.settings import DTYPES


class HFReplica(RolloutReplica):
    """A rollout replica with one :class:`CaptionServer`.

    The server holds the whole model on one device; with a replica of several ranks (tensor parallel size over 1)
    the further ranks only take part in gathering the weights.

    Raises:
        NotImplementedError: asked to serve a reward or teacher model.
        ConfigError: a bad option or dtype.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_reward_model or self.is_teacher_model:
            raise NotImplementedError("rollout.name=hf serves captions only, no reward or teacher models")
        self.options = HFOptions.from_engine_kwargs(self.config.engine_kwargs)
        if self.config.dtype not in DTYPES:
            kinds = ", ".join(DTYPES)
            raise ConfigError("actor_rollout_ref.rollout.dtype", f"must be one of {kinds}, got {self.config.dtype!r}")

    async def launch_servers(self) -> None:
        """Start the server and wait until its model is loaded."""
        node_id, accelerator = await self.workers[0].__ray_call__.remote(_placement)
        on_accelerator = self._device() != "cpu"
        environment = {}
        if on_accelerator:
            platform = get_platform()
            environment = {**dict.fromkeys(platform.ray_noset_envvars(), "1"), **platform.rollout_env_vars()}
        server_class: Any = ray.remote(CaptionServer)
        server = server_class.options(
            name=server_name(self.replica_rank),
            num_cpus=self.options.num_cpus,
            max_concurrency=self.max_concurrency,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
            runtime_env={"env_vars": environment} if environment else None,
        ).remote(self._server_config(accelerator if on_accelerator else None))
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        # Only a key of verl's load balancer: the server speaks Ray, not HTTP.
        self._server_address = f"ray://{server_name(self.replica_rank)}"

    def _device(self) -> str:
        return self.options.device or get_device_name()

    def _server_config(self, accelerator: str | None) -> ServerConfig:
        return ServerConfig(
            model_path=self.model_config.path,
            prompt_length=self.config.prompt_length,
            response_length=self.config.response_length,
            dtype=self.config.dtype,
            device=self._device(),
            visible_devices=(get_visible_devices_keyword(), accelerator) if accelerator else None,
            seed=self.config.seed,
            ignore_eos=self.config.ignore_eos,
            offload_on_sleep=self.config.free_cache_engine and self.rollout_mode != RolloutMode.STANDALONE,
            options=self.options,
        )


def _placement(_: Any) -> tuple[str, str | None]:
    """Node of the calling worker and the id of its first accelerator; runs inside the worker."""
    context = ray.get_runtime_context()
    accelerators = context.get_accelerator_ids().get(get_resource_name(), [])
    return context.get_node_id(), accelerators[0] if accelerators else None
