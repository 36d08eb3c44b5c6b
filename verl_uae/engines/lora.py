# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters of the transformer: added, switched off, merged.

Shape legend: R rank, I O widths of a linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from verl_uae.checkpoints.lora import check_targets, merge, split_adapters
from verl_uae.checkpoints.shards import plain_name
from verl_uae.errors import ConfigError
from verl_uae.seeding import normal

_ADAPTER = "default"


def add_lora(
    module: nn.Module,
    *,
    rank: int,
    alpha: int,
    target_modules: Sequence[str] | str,
    seed: int = 0,
    frozen: tuple[str, ...] = (),
    part: str = "transformer",
    key: str = "uae.train.lora",
) -> int:
    """Add fp32 adapters to layers of a part of a module, in place; all other weights are frozen.

    W x becomes W x + (alpha / rank) B A x with A from N(0, 1 / rank^2), as peft's ``gaussian``, and B = 0, so nothing
    changes yet. A is drawn by name: the same on every rank and in every process.

    Args:
        module: not sharded yet.
        rank: R, at least 1.
        alpha: scale, at least 1.
        target_modules: endings of the names of the layers, or one pattern of whole names.
        seed: part of the name of the draws.
        frozen: beginnings of the names of layers that get none.
        part: name of the submodule that gets adapters.
        key: section of the configuration, for errors.

    Returns:
        Number of adapted layers.

    Raises:
        ConfigError: an ending matches no layer, or the rank or alpha is not positive.
    """
    for name, value in (("rank", rank), ("alpha", alpha)):
        if value < 1:
            raise ConfigError(f"{key}.{name}", f"must be at least 1, got {value}")
    adapted = module.get_submodule(part)
    check_targets(adapted, target_modules, frozen, part=part, key=key)
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    left_out = "|".join(f"{re.escape(start)}.*" for start in frozen) or None
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, exclude_modules=left_out, init_lora_weights="gaussian"
    )
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, adapted, _ADAPTER)
    layers = lora_layers(module)
    for name, layer in layers.items():
        _initialise(layer, seed, name)
    # verl's checkpoint manager recognises adapters by this name.
    setattr(module, "peft_config", {_ADAPTER: config})  # noqa: B010
    return len(layers)


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """Adapted layers by name, without the names FSDP puts between."""
    return {plain_name(name): layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


@contextmanager
def adapter_disabled(module: nn.Module) -> Iterator[None]:
    """The module without its adapters.

    peft's own switch also changes ``requires_grad`` of the adapters, which FSDP must not see between a forward and its
    backward pass.
    """
    layers = list(lora_layers(module).values())
    before = [layer.disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def lora_scalings(module: nn.Module) -> dict[str, float]:
    """alpha / rank of every adapted layer by its name."""
    return {name: float(layer.scaling[_ADAPTER]) for name, layer in lora_layers(module).items()}


def merged_state(state: dict[str, Tensor], scalings: dict[str, float]) -> dict[str, Tensor]:
    """Full weights with adapters multiplied out, under the names of the module without adapters.

    Args:
        state: full tensors by name, adapters included.
        scalings: of :func:`lora_scalings`; empty if there are no adapters.

    Returns:
        Adapted layers by :func:`~verl_uae.checkpoints.lora.merged_weight`; the others as they are.
    """
    base, layers = split_adapters(state, "the weights of the run")
    return merge(base, {layer: layers[layer] for layer in scalings}, scalings, "the weights of the run")


@torch.no_grad()
def _initialise(layer: Any, seed: int, name: str) -> None:
    a_RI, b_OR = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    for weight in (a_RI, b_OR):
        weight.data = weight.data.float()
        weight.requires_grad_(True)
    if not a_RI.is_meta:
        a_RI.copy_(normal(tuple(a_RI.shape), "lora", seed, name) / a_RI.shape[0])
        b_OR.zero_()
