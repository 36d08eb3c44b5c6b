# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Training engine of the captioner: verl's FSDP engine with a frozen vision tower, also on the CPU."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_uae.engine.left_out import LEFT_OUT
from verl_uae.engine.together import together
from verl_uae.errors import CheckpointError

logger = logging.getLogger(__name__)

#: Value of ``actor_rollout_ref.model.model_type`` that selects this engine.
MODEL_TYPE = "uae_captioner"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class CaptionerEngine(FSDPEngineWithLMHead):
    """verl's language-model engine plus three things it lacks in 0.9.1.

    * ``actor.freeze_vision_tower`` is a documented field of verl that its FSDP engine ignores; here it is obeyed
      (the paper's Fig. 9: training the ViT makes reconstructions collapse).
    * A forward-only engine is offloaded to pinned host memory, which a machine without accelerator does not have.
    * An update in which no token trains is left out; see :meth:`train_batch`.
    """

    freeze_vision_tower: bool = False
    engine_config: Any

    def _build_module(self) -> nn.Module:
        # verl's engine knows two model types by name and refuses others.
        self.model_config.model_type = "language_model"
        with together(lambda text: CheckpointError(self.model_config.local_path, text)):
            module = super()._build_module()
        if self.freeze_vision_tower:
            frozen = freeze_vision_tower(module)
            logger.info("vision tower frozen: %d parameters", frozen)
        return module

    def train_batch(self, data: TensorDict, loss_function: Callable[..., Any]) -> dict[str, Any]:
        """verl's update; none if no token of the mini-batch trains on any rank.

        There the token mean is 0 / 0 and its gradient zero, with which the optimiser would still move the weights by
        momentum and weight decay. A rank without such a token takes part where another has one.

        Args:
            data: this rank's part of a mini-batch; ``loss_mask`` is 1 at the tokens that train.
            loss_function: verl's.

        Returns:
            verl's output, :data:`~verl_uae.engine.left_out.LEFT_OUT` among the metrics.
        """
        tokens = data["loss_mask"].sum().to(get_device_id())
        torch.distributed.all_reduce(tokens, group=self.get_data_parallel_group())
        if tokens == 0:
            return {"model_output": {}, "loss": [], "metrics": {LEFT_OUT: [1.0]}}
        output: dict[str, Any] = super().train_batch(data, loss_function)
        output["metrics"][LEFT_OUT] = [0.0]
        return output

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        if get_device_name() != "cpu" or not self.engine_config.forward_only:
            return super()._build_fsdp_module(module)
        config = self.engine_config
        self.engine_config = dataclasses.replace(config, forward_only=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config


def freeze_vision_tower(module: nn.Module) -> int:
    """Stop gradients into the vision tower.

    Returns:
        Number of parameters frozen.

    Raises:
        ValueError: if the model has no submodule named ``visual`` or ``vision_tower``.
    """
    towers = [tower for name, tower in module.named_modules() if name.rsplit(".", 1)[-1] in ("visual", "vision_tower")]
    if not towers:
        raise ValueError(
            f"actor_rollout_ref.actor.freeze_vision_tower is true but {type(module).__name__} has no vision tower"
        )
    for tower in towers:
        tower.requires_grad_(False)
    return sum(parameter.numel() for parameter in towers[0].parameters())
