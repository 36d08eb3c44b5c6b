# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of the trainable weights that live beside a sharded module: average, old policy, reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from verl.utils.device import get_torch_device, is_device_available

from verl_uae.checkpoints.shards import plain_name


def warmed_up(decay: float, updates: int) -> float:
    """Decay of an average that is young: min((1 + n) / (10 + n), decay) after n earlier updates of the weights.

    Without it the weights of the beginning stay in the average for long. Flow-GRPO's code.
    """
    return min((1 + updates) / (10 + updates), decay)


class WeightShadow:
    """A copy of this rank's shards of the trainable parameters; no collective, nothing is gathered.

    Args:
        module: sharded or not. Parameters are looked up at every use, since offloading replaces their storage.
        device: where to keep the copy; None is the device of each parameter now.
    """

    def __init__(self, module: nn.Module, device: str | torch.device | None = None) -> None:
        self._module = module
        self._swapped = False
        with torch.no_grad():
            self._copies = {
                name: local.detach().to(device or local.device, copy=True)
                for name, local in local_shards(module).items()
            }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """copy = decay * copy + (1 - decay) * weights, elementwise; decay in [0, 1), 0 copies.

        Raises:
            ValueError: decay is out of range.
            RuntimeError: the copy is swapped in.
        """
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self._check_free()
        for name, local in local_shards(self._module).items():
            copy = self._copies[name]
            if decay == 0.0:
                copy.copy_(local)
            else:
                copy.lerp_(local.to(copy.device), 1.0 - decay)

    def copy_(self) -> None:
        """Become the current weights, bit for bit."""
        self.update(0.0)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module with the copy as its weights; restored bit for bit afterwards, also after an error.

        Contents are exchanged, so no third copy is held meanwhile.

        Raises:
            RuntimeError: the copy is swapped in already.
        """
        self._check_free()
        self._exchange()
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's shards by parameter name, on the host."""
        self._check_free()
        return {name: copy.detach().to("cpu", copy=True) for name, copy in self._copies.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave on the same rank of as many.

        Raises:
            ValueError: names or shapes differ.
        """
        self._check_free()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wanted = {name: tuple(copy.shape) for name, copy in self._copies.items()}
        if shapes != wanted:
            odd = sorted(set(shapes.items()) ^ set(wanted.items()))[:4]
            raise ValueError(f"saved weights and trainable weights differ: {odd}")
        for name, copy in self._copies.items():
            copy.copy_(state[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, local in local_shards(self._module).items():
            weights = local.clone()
            local.copy_(self._copies[name])
            self._copies[name].copy_(weights)

    def _check_free(self) -> None:
        if self._swapped:
            raise RuntimeError("these weights are swapped into the module")


def local_shards(module: nn.Module) -> dict[str, Tensor]:
    """This rank's shards of the trainable parameters by name, sharing their storage.

    Gathered parameters are released first: FSDP would go on using them and not see what is written into the shards.
    """
    reshard(module)
    with torch.no_grad():
        return {
            plain_name(name): parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }


def reshard(module: nn.Module) -> None:
    """Make this rank's shards readable and the only thing FSDP computes with; to be called before they are read.

    Parameters that FSDP left gathered after a forward pass without backward are released. Shards on the host are waited
    for: verl offloads them without blocking, and until the copies are done the host reads half of the old memory.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
        elif isinstance(part, FullyShardedDataParallel) and part._handle is not None:
            part._handle.reshard(True)
    if is_device_available() and any(
        weight.device.type == "cpu" for weight in (*module.parameters(), *module.buffers())
    ):
        get_torch_device().synchronize()
