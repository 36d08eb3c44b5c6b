# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""An unsharded copy of the decoder for sampling: no weights are gathered while pictures are drawn.

A sharded module gathers every block at every velocity call; a copy needs the memory of the whole model and is filled
once per rollout. It holds what FSDP would gather: parameters in the compute dtype, buffers as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from verl.utils.device import get_device_id
from verl.utils.torch_dtypes import PrecisionType

from verl_uae.checkpoints.shards import plain_name
from verl_uae.compiling import compile_blocks
from verl_uae.engines.decoder_module import DecoderModule, Uncast
from verl_uae.engines.export import full_tensor
from verl_uae.engines.lora import add_lora
from verl_uae.engines.shadow import reshard
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families.family import Condition
from verl_uae.flow.ode import Velocity

if TYPE_CHECKING:
    from verl_uae.engines.decoder import DecoderEngine


class SamplingReplica:
    """The whole decoder on this rank; every rank must build and fill its own.

    Args:
        engine: initialised, on FSDP2.

    Raises:
        ConfigError: the engine shards with FSDP1, whose weights are gathered on rank 0 alone.
    """

    def __init__(self, engine: DecoderEngine) -> None:
        if isinstance(engine.module, FullyShardedDataParallel):
            raise ConfigError("uae.u4g.sampler", "replica needs uae.train.fsdp_config.strategy=fsdp2")
        self._engine = engine
        config = engine.model_config
        mixed = engine.engine_config.mixed_precision or {}
        self._dtype = PrecisionType.to_dtype(mixed.get("param_dtype", "bf16"))
        module = DecoderModule.from_pretrained(config.path, empty=True)
        if config.lora_rank > 0:
            targets = config.lora_target_modules or module.family.lora_targets
            add_lora(module, rank=config.lora_rank, alpha=config.lora_alpha, target_modules=targets)
        for parameter in module.parameters():
            # Still without memory: on the device it would be held twice, at four bytes a number.
            parameter.data = parameter.data.to(self._dtype)
        if config.compile_blocks:
            compile_blocks(module.transformer, module._no_split_modules)
        self.module = module.requires_grad_(False).eval()
        self._held = False
        self.refresh()

    def refresh(self) -> int:
        """Take the weights as they are in the engine now, the frozen ones only where the copy holds none.

        Every rank must call it.

        Returns:
            Number of tensors copied.

        Raises:
            CheckpointError: nothing is trained, or a trained tensor has no place here.
        """
        held, self._held = self._held, True
        if not held:
            self.module.to_empty(device=get_device_id())
        return self._fill(trained_only=held)

    def release(self) -> None:
        """Give the memory back until the next :meth:`refresh`: the shards have the weights, and gathering them costs
        less than moving them to the host and back."""
        self._held = False
        self.module.to_empty(device="meta")

    def field(self, condition: Condition, negative: Condition | None = None, guidance: float = 1.0) -> Velocity:
        """The velocity with its condition filled in; ranks need not ask for velocities equally often."""
        return lambda x_BCHW, sigma_B: self.module(x_BCHW, Uncast(sigma_B), condition, negative, guidance)

    @torch.no_grad()
    def _fill(self, *, trained_only: bool) -> int:
        module = self._engine.module
        reshard(module)
        own = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        source = {plain_name(name): tensor for name, tensor in module.named_parameters()}
        chosen = {name: tensor for name, tensor in source.items() if tensor.requires_grad or not trained_only}
        if not trained_only:
            chosen |= {plain_name(name): tensor for name, tensor in module.named_buffers()}
        unplaced = sorted(set(chosen) - set(own))
        if unplaced or not chosen or not (trained_only or set(chosen) == set(own)):
            odd = unplaced or sorted(set(own) - set(chosen))
            raise CheckpointError("sampling replica", f"{len(chosen)} tensors offered, without a partner: {odd[:4]}")
        for name, tensor in chosen.items():
            own[name].copy_(full_tensor(tensor))
        return len(chosen)
