# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Training engine of the captioner: verl's FSDP engine with a frozen vision tower, also on the CPU.

Shape legend: R rank, I width of the input of a linear layer.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from verl.utils.device import get_device_id, get_device_name
from verl.utils.fs import copy_to_local
from verl.utils.fsdp_utils import (
    load_fsdp_model_to_gpu,
    merged_lora_context,
    normalize_peft_param_name,
    offload_fsdp_model_to_cpu,
)
from verl.utils.model import convert_weight_keys
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_uae.captioners import vision_towers
from verl_uae.checkpoints.captioner_adapters import Placement, placing, without_towers
from verl_uae.checkpoints.load import check_captioner
from verl_uae.checkpoints.source import local_folder
from verl_uae.engines.lora import lora_layers
from verl_uae.engines.together import together
from verl_uae.engines.update_metrics import LEFT_OUT
from verl_uae.errors import CheckpointError
from verl_uae.paths import is_hub_id
from verl_uae.seeding import generator

logger = logging.getLogger(__name__)

#: Value of ``actor_rollout_ref.model.model_type`` that selects this engine.
MODEL_TYPE = "uae_captioner"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class CaptionerEngine(FSDPEngineWithLMHead):
    """verl's language-model engine plus what it lacks in 0.9.1.

    * ``actor.freeze_vision_tower`` is a documented field of verl that its FSDP engine ignores; here it is obeyed
      (the paper's Fig. 9: training the ViT makes reconstructions collapse), by adapters too: none are placed there.
    * A tensor that the files lack would start at random, of the model and of the adapters at ``lora_adapter_path``.
    * Adapters get the precision of the weights; with FSDP2 they are held in fp32 whatever ``model_dtype`` is. They are
      drawn from a generator that nothing seeds; here by their names and ``fsdp_config.seed``.
    * Weights with adapters multiplied in are rounded and may be no copies; see `_merged_lora_per_tensor_param`.
    * A forward-only engine is offloaded to pinned host memory, which a machine without accelerator does not have.
    * An update in which no token trains is left out; see :meth:`train_batch`.
    """

    freeze_vision_tower: bool = False
    engine_config: Any
    model_config: Any

    def _build_module(self) -> nn.Module:
        # verl's engine knows two model types by name and refuses others.
        self.model_config.model_type = "language_model"
        with together(lambda text: CheckpointError(self.model_config.local_path, text)):
            check_source(self.model_config.local_path, code=bool(self.model_config.trust_remote_code))
            module = super()._build_module()
        if self.freeze_vision_tower:
            frozen = freeze_vision_tower(module)
            logger.info("vision tower frozen: %d parameters", frozen)
        return module

    def _build_lora_module(self, module: nn.Module) -> nn.Module:
        config = self.model_config
        stored = config.lora_adapter_path
        placement = Placement(
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=config.target_modules,
            exclude_modules=config.exclude_modules,
            lora_adapter_path=None if stored is None else Path(copy_to_local(stored, use_shm=config.use_shm)),
            frozen_tower=self.freeze_vision_tower,
        )
        if self.freeze_vision_tower:
            # A copy, since verl's configurations do not let this field be set.
            self.model_config = copy.copy(config)
            object.__setattr__(self.model_config, "exclude_modules", without_towers(config.exclude_modules))
        try:
            with placing(placement.key):
                module = super()._build_lora_module(module)
        finally:
            self.model_config = config
        placement.check(module)
        if self.engine_config.strategy == "fsdp2":
            hold_in_fp32(module)
        if stored is None:
            draw_adapters(module, self.engine_config.seed)
        return module

    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights by transformers' names, adapters multiplied in whatever the caption server is sent.

        Every rank has to walk to the end; ranks with adapters are offloaded again behind it where that is set.
        """
        if not hasattr(getattr(self.module, "_fsdp_wrapped_module", self.module), "peft_config"):
            weights: Iterator[tuple[str, Tensor]] = iter(self.get_per_tensor_param()[0])
            return weights
        if not self._uses_fsdp2_cpu_offload_policy:
            load_fsdp_model_to_gpu(self.module)
        return self._merged_lora_per_tensor_param()

    def _merged_lora_per_tensor_param(self) -> Iterator[tuple[str, Tensor]]:
        """Weights with adapters multiplied in for the caption server: copies, by transformers' names.

        verl rounds them to bf16, whatever the server computes in. And of one rank a bf16 weight is no copy but the
        weight itself, out of which the adapters are taken again behind the last name: a sender that collects would
        send it without them.
        """
        try:
            with merged_lora_context(self.module, backup_adapters=True):
                state = normalize_peft_param_name(self.module.state_dict())
                module = getattr(self.module, "_fsdp_wrapped_module", self.module)
                for name, weight in convert_weight_keys(state, module).items():
                    moved = weight.to(get_device_id(), non_blocking=True)
                    yield name, (moved.full_tensor() if isinstance(moved, DTensor) else moved).clone()
        finally:
            if self._is_offload_param:
                offload_fsdp_model_to_cpu(self.module)

    def train_batch(self, data: TensorDict, loss_function: Callable[..., Any]) -> dict[str, Any]:
        """verl's update; none if no token of the mini-batch trains on any rank.

        There the token mean is 0 / 0 and its gradient zero, with which the optimiser would still move the weights by
        momentum and weight decay. A rank without such a token takes part where another has one.

        Args:
            data: this rank's part of a mini-batch; ``loss_mask`` is 1 at the tokens that train.
            loss_function: verl's.

        Returns:
            verl's output, :data:`~verl_uae.engines.update_metrics.LEFT_OUT` among the metrics.
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
    """Stop gradients into the vision tower, and into what maps its patches to tokens.

    Returns:
        Number of parameters frozen.

    Raises:
        ValueError: if the model has no submodule of a name in :data:`~verl_uae.captioners.TOWERS`.
    """
    towers = vision_towers(module)
    if not towers:
        raise ValueError(
            f"actor_rollout_ref.actor.freeze_vision_tower is true but {type(module).__name__} has no vision tower"
        )
    for tower in towers:
        tower.requires_grad_(False)
    return sum(parameter.numel() for tower in towers for parameter in tower.parameters())


def hold_in_fp32(module: nn.Module) -> None:
    """Put what trains into fp32, in place: verl gives adapters the precision of the weights, and of an update of bf16
    numbers most of a small learning rate is rounded away. FSDP2 shards weights of another precision beside them."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@torch.no_grad()
def draw_adapters(module: nn.Module, seed: int) -> None:
    """Draw A of every adapter anew by its name, in place: peft draws from the global generator, which nothing seeds,
    so that no run repeats another. The distribution is peft's, uniform in +-1 / sqrt(I), and B stays 0."""
    for name, layer in lora_layers(module).items():
        a_RI = layer.lora_A["default"].weight
        if not a_RI.is_meta:
            bound = a_RI.shape[1] ** -0.5
            named = generator("captioner lora", seed, name)
            a_RI.copy_(torch.empty(a_RI.shape).uniform_(-bound, bound, generator=named))


def check_source(source: str, *, code: bool) -> None:
    """Refuse a captioner that verl would complete with random tensors, or whose code nobody asked for.

    The digests of a manifest were compared by the driver, once for all ranks.

    Args:
        source: folder or hub id, which is fetched.
        code: verl runs the code that it brings; then only a folder without code is looked at.

    Raises:
        CheckpointError: naming the tensor or file.
    """
    if code and is_hub_id(source):
        return
    check_captioner(Path(source) if code else local_folder(source), verify=False, code=code, writes=True)
