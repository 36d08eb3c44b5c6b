# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder's weights in a training checkpoint: from its folder, or from the policy's shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from verl_uae.chain.projector import Projector
from verl_uae.checkpoints.base import COMPONENTS, Base, base_tensors, filled
from verl_uae.checkpoints.lora import Adapters, merge, split_adapters
from verl_uae.checkpoints.names import HUGGINGFACE, LORA_META, POLICY_FOLDER
from verl_uae.checkpoints.shards import LIVE, read_shards, weight_copies
from verl_uae.errors import CheckpointError, ConfigError

EMA = "ema"

#: Parts of the policy and their components in a decoder folder.
PARTS: dict[str, tuple[str, Any]] = {
    "transformer": (COMPONENTS["transformer"], SD3Transformer2DModel),
    "projector": (COMPONENTS["projector"], Projector),
}


def chosen_weights(checkpoint: Path, wanted: str | None) -> str:
    """Which weights to export: those asked for, else the averaged ones if there are any, else the live ones."""
    if wanted is not None:
        return wanted
    return EMA if EMA in weight_copies(checkpoint / POLICY_FOLDER) else LIVE


def policy_modules(
    checkpoint: Path, weights: str, base: str | Path | None, alpha: float | None
) -> tuple[SD3Transformer2DModel, Projector]:
    """Transformer and projector of a policy, adapters multiplied out.

    Args:
        checkpoint: step folder with ``decoder_policy/``.
        weights: ``live`` or ``ema``.
        base: decoder folder or hub id that the run started from, for the weights that it did not train; None is the
            one that the checkpoint names.
        alpha: of the adapters, if the checkpoint does not say.

    Raises:
        CheckpointError: shards, adapters or configurations do not fit together.
        ConfigError: alpha is needed, or is another than the checkpoint's.
    """
    folder = checkpoint / POLICY_FOLDER
    state, layers = split_adapters(read_shards(folder, weights), folder)
    if _lacks_weights(state, folder):
        state = filled(state, _base_state(base, folder))
    if layers:
        adapters = Adapters(layers, adapter_alpha(folder, layers, alpha))
        state = merge(state, layers, adapters.scaling, folder)
    modules = [_load(name, _empty(name, folder), state, folder) for name in PARTS]
    unknown = sorted(name for name in state if name.partition(".")[0] not in PARTS)
    if unknown:
        raise CheckpointError(folder, f"{len(unknown)} tensors belong to no part of the decoder: {unknown[:4]}")
    return modules[0], modules[1]


def policy_adapters(checkpoint: Path, weights: str, base: str | Path | None, alpha: float | None) -> Adapters:
    """The adapters alone, of a run that trained nothing else.

    Raises:
        CheckpointError: the run trained no adapters, or the projector too, which adapter formats cannot hold.
        ConfigError: see :func:`policy_modules`.
    """
    folder = checkpoint / POLICY_FOLDER
    state, layers = split_adapters(read_shards(folder, weights), folder)
    if not layers:
        raise CheckpointError(folder, "the run trained full weights, not adapters")
    projector = {name: tensor for name, tensor in state.items() if name.startswith("projector.")}
    if projector and (base is not None or Base.read(folder) is not None):
        before = _base_state(base, folder)
        moved = [name for name, tensor in projector.items() if not torch.equal(tensor, before[name].to(tensor.dtype))]
        if moved:
            raise CheckpointError(
                folder, "the projector was trained too, which an adapter cannot hold: export a folder"
            )
    prefix = "transformer."
    named = {name.removeprefix(prefix): halves for name, halves in layers.items() if name.startswith(prefix)}
    if len(named) != len(layers):
        raise CheckpointError(folder, "there are adapters outside the transformer")
    return Adapters(named, adapter_alpha(folder, layers, alpha))


def adapter_alpha(folder: Path, layers: dict[str, tuple[Tensor, Tensor]], given: float | None) -> float:
    """alpha of the adapters: what verl saved beside the shards, else what was given.

    Raises:
        CheckpointError: the saved rank is not that of the tensors.
        ConfigError: nothing is known, or what is given is not what was saved.
    """
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


def _base_state(base: str | Path | None, folder: Path) -> dict[str, Tensor]:
    """Weights of the base: the one that is given, else the one that the checkpoint names; the same by content."""
    recorded = Base.read(folder)
    path = str(base) if base is not None else recorded.path if recorded else None
    if path is None:
        raise ConfigError(
            "--decoder", f"needed: {folder} holds adapters alone, or other trained weights without the frozen ones"
        )
    if recorded is not None:
        recorded.check(Base.of(path, tuple(COMPONENTS.values())), folder)
    return base_tensors(path)


def _lacks_weights(state: dict[str, Tensor], folder: Path) -> bool:
    """Whether weights of a part are not among those of a checkpoint."""
    return any(f"{part}.{name}" not in state for part in PARTS for name in _empty(part, folder).state_dict())


def _empty(part: str, folder: Path) -> Any:
    """A part of the policy without weights, of the configuration in the checkpoint."""
    component, kind = PARTS[part]
    path = folder / HUGGINGFACE / component
    try:
        config = kind.load_config(path)
    except OSError as error:
        raise CheckpointError(path, f"has no configuration: {error}") from error
    with torch.device("meta"):
        return kind.from_config(config)


def _load(part: str, module: Any, state: dict[str, Tensor], folder: Path) -> Any:
    own = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
    try:
        module.load_state_dict(own, assign=True)
    except RuntimeError as error:
        raise CheckpointError(folder, f"the {part} does not fit its configuration: {error}") from error
    return module.requires_grad_(False)
