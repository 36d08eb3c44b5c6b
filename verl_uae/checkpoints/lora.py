# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: multiplied out, and as files that peft and diffusers load.

Shape legend: R rank, I O widths of a linear layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from verl_uae.checkpoints.names import ADAPTER_WEIGHTS, LORA_META
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.files import publish_folder

_A, _B, _BASE = ".lora_A.", ".lora_B.", ".base_layer."


@dataclass(frozen=True, slots=True)
class Adapters:
    """Adapters of a model: W becomes W + (alpha / R) B A."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    """Name of the layer in the model -> A (R, I) and B (O, R)."""
    alpha: float

    @property
    def rank(self) -> int:
        """R."""
        return next(iter(self.layers.values()))[0].shape[0]

    @property
    def scaling(self) -> float:
        """alpha / R."""
        return self.alpha / self.rank

    def config(self, where: str | Path = "") -> LoraConfig:
        """peft's, which names every layer. Raises `CheckpointError` naming ``where``: there is none."""
        if not self.layers:
            raise CheckpointError(where, "there are no adapters to write")
        alpha = int(self.alpha) if float(self.alpha).is_integer() else self.alpha
        return LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=sorted(self.layers))  # type: ignore[arg-type]


def check_targets(
    module: nn.Module,
    target_modules: Sequence[str] | str,
    frozen: tuple[str, ...] = (),
    *,
    part: str,
    key: str,
) -> None:
    """Check that adapters have a place in a module, which may be on ``meta``.

    Args:
        module: what gets adapters.
        target_modules: endings of the names of the layers, or one pattern of whole names.
        frozen: beginnings of the names of layers that get none.
        part: what the error calls the module.
        key: section of the configuration, for errors.

    Raises:
        ConfigError: there is no target, or one matches no linear layer.
    """
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    linear = [name for name in linear if not name.startswith(frozen)]
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not wanted:
        raise ConfigError(f"{key}.target_modules", f"names no layer; {key}.rank=0 trains all weights")
    for target in wanted:
        if not any(_matches(name, target, target_modules) for name in linear):
            endings = dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", name) for name in linear)
            reason = f"{target!r} matches no linear layer of {part}; it has {', '.join(endings)}"
            raise ConfigError(f"{key}.target_modules", reason)


def _matches(name: str, target: str, given: Sequence[str] | str) -> bool:
    """Whether peft adapts a layer for a target: an ending, or a pattern where that is all that was given."""
    if isinstance(given, str):
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith(f".{target}")


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds low-rank adapters."""
    return any(_A in name or _B in name for name in state)


def split_adapters(
    state: Mapping[str, Tensor], where: str | Path
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Separate adapters from base weights.

    Args:
        state: full tensors; adapters are ``<layer>.lora_A.<name>.weight`` and ``lora_B``, adapted layers
            ``<layer>.base_layer.weight``, as peft names them.
        where: what the error names.

    Returns base weights under the names of the model without adapters, and A and B by layer. Raises `CheckpointError`:
    an adapter has only one half, the halves do not fit, or ranks differ.
    """
    base = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if _A not in name and _B not in name}
    first, second = (
        {name.partition(half)[0]: tensor for name, tensor in state.items() if half in name} for half in (_A, _B)
    )
    if alone := sorted(first.keys() ^ second.keys()):
        raise CheckpointError(where, f"{len(alone)} adapters have only one half: {alone[:4]}")
    layers = {name: (a_RI, second[name]) for name, a_RI in first.items()}
    ranks = {(a_RI.shape[0], b_OR.shape[1]) for a_RI, b_OR in layers.values()}
    if len({rank for pair in ranks for rank in pair}) > 1:
        raise CheckpointError(where, f"adapters of several ranks: {sorted(ranks)}")
    return base, layers


def merge(
    base: Mapping[str, Tensor],
    layers: Mapping[str, tuple[Tensor, Tensor]],
    scaling: float | Mapping[str, float],
    where: str | Path,
) -> dict[str, Tensor]:
    """Weights by name with the A and B of layers multiplied out, see `merged_weight`; the scaling is that of all or of
    each by its layer. Raises `CheckpointError` naming ``where``: an adapted layer is not there or has another shape."""
    merged = dict(base)
    for layer, (a_RI, b_OR) in layers.items():
        name = f"{layer}.weight"
        if name not in base:
            raise CheckpointError(where, f"adapts {layer}, which the model does not have")
        weight_OI = base[name]
        if weight_OI.shape != (b_OR.shape[0], a_RI.shape[1]):
            raise CheckpointError(where, f"the adapter of {layer} does not fit its weight {tuple(weight_OI.shape)}")
        scale = scaling if isinstance(scaling, float | int) else scaling[layer]
        merged[name] = merged_weight(weight_OI, a_RI, b_OR, scale)
    return merged


def merged_weight(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """W + scaling * B A, computed in fp32 and in the dtype of W."""
    return (weight_OI.float() + scaling * (b_OR.float() @ a_RI.float())).to(weight_OI.dtype)


def adapter_alpha(folder: Path, layers: dict[str, tuple[Tensor, Tensor]], given: float | None) -> float:
    """alpha of the adapters: what verl saved beside the shards, else what was given. Raises `CheckpointError`: the
    saved rank is not that of the tensors; `ConfigError`: nothing is known, or what is given is not what was saved."""
    path = folder / LORA_META
    if not path.is_file():
        if given is None:
            raise ConfigError("--lora-alpha", f"needed: {path} is missing")
        return given
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = int(saved["r"]), float(saved["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"cannot be read: {error!r}") from error
    found = Adapters(layers, alpha).rank
    if rank != found:
        raise CheckpointError(path, f"says rank {rank}, the adapters have {found}")
    if given is not None and given != alpha:
        raise ConfigError("--lora-alpha", f"{given:g} was given, the checkpoint says {alpha:g}")
    return alpha


def save_peft(adapters: Adapters, out: str | Path, *, base_model: str | None = None, task: str | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, which ``PeftModel.from_pretrained`` loads on the
    stock model; ``base_model`` is what the configuration names as the base, loading does not need it, and ``task`` is
    peft's type of it. Raises `CheckpointError`: there are no adapters, or ``out`` exists."""
    config = adapters.config(out)
    config.base_model_name_or_path, config.task_type = base_model, task
    tensors = {f"base_model.model.{name}": tensor for name, tensor in _named(adapters.layers).items()}

    def build(folder: Path) -> None:
        config.save_pretrained(str(folder))
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    publish_folder(build, out)


def save_diffusers(adapters: Adapters, out: str | Path, loader: Any) -> None:
    """Write ``pytorch_lora_weights.safetensors``, which ``load_lora_adapter`` of the transformer and
    ``load_lora_weights`` of stock pipelines load; ``loader`` is their mixin, as a family names it. Raises as
    `save_peft`. The scale is multiplied into B, so the file says alpha = R: readers that know no metadata assume
    that."""
    layers = {name: (a_RI, adapters.scaling * b_OR.float()) for name, (a_RI, b_OR) in adapters.layers.items()}
    scaled = Adapters(layers, alpha=adapters.rank) if layers else adapters
    metadata = scaled.config(out).to_dict()
    # Only what rebuilds the adapter: the file's header holds text, and paths and versions are not its business.
    kept = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias")

    def build(folder: Path) -> None:
        loader.save_lora_weights(
            folder,
            transformer_lora_layers=_named(layers),
            transformer_lora_adapter_metadata={name: metadata[name] for name in kept},
        )

    publish_folder(build, out)


def _named(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_{half}.weight": tensor.detach().to(torch.float32).contiguous()
        for layer, pair in layers.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
