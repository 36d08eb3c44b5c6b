# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of the sharded decoder as full tensors: for decoders, for replicas, and as a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.distributed.tensor import DTensor
from verl.utils.device import get_device_id
from verl.utils.fsdp_utils import load_fsdp_model_to_gpu, offload_fsdp_model_to_cpu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.decoder import base_tensors
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.lora import merged_weight, split_adapters
from verl_uae.checkpoints.shards import plain_name
from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.lora import lora_scalings, merged_state
from verl_uae.engines.shadow import reshard
from verl_uae.engines.together import together
from verl_uae.errors import CheckpointError
from verl_uae.families import family_of
from verl_uae.files import publish_folder
from verl_uae.masters import unshare


def full_state_dict(engine: DecoderEngine, weights: str = "live") -> dict[str, Tensor]:
    """Gather the decoder; every rank must call it.

    Args:
        engine: initialised.
        weights: ``live``, ``reference``, or the name of a weight copy such as ``ema``.

    Returns:
        On rank 0 full tensors on the host in the dtype they are held in, adapters multiplied out, named as in
        :class:`~verl_uae.engines.decoder_module.DecoderModule`; on other ranks nothing.

    Raises:
        KeyError: no such weights are kept.
    """
    bare = weights == "reference" and weights not in engine.shadows
    with _chosen(engine, weights):
        scalings = {} if bare else lora_scalings(engine.module)
        state = _gather(engine)
    return merged_state(state, scalings) if state else {}


def gather_merged(engine: FSDPEngine) -> dict[str, Tensor]:
    """Full tensors of any sharded engine with adapters multiplied out, on rank 0; every rank must call it."""
    state = _gather(engine)
    return merged_state(state, lora_scalings(engine.module)) if state else {}


@dataclass(frozen=True, slots=True)
class TrainedState:
    """What training has changed of a decoder, to be handed to others that hold the base."""

    tensors: Mapping[str, Tensor]
    """Trained weights by name, adapters aside."""
    adapters: Mapping[str, tuple[Tensor, Tensor, float]]
    """Name of the layer -> A (R, I) and B (O, R) in fp32, and alpha / R."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        halves = [half for a_RI, b_OR, _ in self.adapters.values() for half in (a_RI, b_OR)]
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *halves))


def trained_state(engine: DecoderEngine, weights: str, dtype: torch.dtype) -> TrainedState | None:
    """Gather what training changes, and nothing else; every rank must call it.

    Args:
        engine: initialised.
        weights: ``live`` or the name of a weight copy such as ``ema``.
        dtype: of the weights that are not adapters, to which receivers would round them anyway.

    Returns:
        On rank 0 full tensors on the host; on other ranks None.

    Raises:
        KeyError: no such weights are kept.
    """
    trained = {plain_name(name) for name, weight in engine.module.named_parameters() if weight.requires_grad}
    with _chosen(engine, weights):
        state = _gather(engine, trained)
    if not state:
        return None
    plain, layers = split_adapters(state, Path(engine.model_config.path))
    scalings = lora_scalings(engine.module)
    adapters = {name: (a_RI, b_OR, scalings[name]) for name, (a_RI, b_OR) in layers.items()}
    return TrainedState({name: tensor.to(dtype) for name, tensor in plain.items()}, adapters)


def load_trained_state(
    module: Decoder | DecoderModule, state: TrainedState, base: str, *, source: str = "weights"
) -> int:
    """Take over what training has changed, in place and in the receiver's dtype.

    Adapters are multiplied out into the base's weights as they are stored, not into the receiver's: those are rounded,
    and hold what came before.

    Args:
        module: a :class:`~verl_uae.chain.decoder.Decoder` or an unsharded decoder module, loaded from ``base``.
        state: of :func:`trained_state`.
        base: decoder folder or hub id.
        source: what the error calls the weights.

    Returns:
        Number of tensors copied.

    Raises:
        CheckpointError: there is nothing to take, a tensor has no place here or another shape. Nothing is copied then.
    """
    own = module.state_dict()
    shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
    shapes |= {
        f"{name}.weight": torch.Size((b_OR.shape[0], a_RI.shape[1])) for name, (a_RI, b_OR, _) in state.adapters.items()
    }
    odd = sorted(name for name in shapes if name not in own or name.split(".")[0] not in module.family.trained)
    if odd or not shapes:
        raise CheckpointError(source, f"{len(odd)} tensors have no place in {type(module).__name__}: {odd[:4]}")
    odd = sorted(name for name, shape in shapes.items() if own[name].shape != shape)
    if odd:
        raise CheckpointError(source, f"{len(odd)} tensors have another shape: {odd[:4]}")
    stored = base_tensors(base, {f"{name}.weight" for name in state.adapters}) if state.adapters else {}
    unshare(module, shapes)
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in state.tensors.items():
            own[name].copy_(tensor)
        for name, (a_RI, b_OR, scaling) in state.adapters.items():
            own[f"{name}.weight"].copy_(merged_weight(stored.pop(f"{name}.weight").float(), a_RI, b_OR, scaling))
    return len(shapes)


def load_full_state(module: Decoder | DecoderModule, state: dict[str, Tensor], *, source: str = "weights") -> int:
    """Copy full weights into an unsharded receiver, in place and in its dtype; one without memory takes the tensors.

    Args:
        module: a :class:`~verl_uae.chain.decoder.Decoder` or an unsharded decoder module.
        state: of :func:`full_state_dict`.
        source: what the error calls the weights.

    Returns:
        Number of tensors copied.

    Raises:
        CheckpointError: a tensor of the state has no place here, a trained part here gets none, or shapes differ.
            Nothing is copied then.
    """
    own = module.state_dict()
    wanted = {name for name in own if name.split(".")[0] in module.family.trained}
    if not state or set(state) != wanted:
        unplaced, missing = sorted(set(state) - wanted), sorted(wanted - set(state))
        message = f"{len(unplaced)} tensors have no place in {type(module).__name__} and {len(missing)} are missing"
        raise CheckpointError(source, f"{message}: {(unplaced + missing)[:4]}")
    odd = [name for name, tensor in state.items() if own[name].shape != tensor.shape]
    if odd:
        raise CheckpointError(source, f"{len(odd)} tensors have another shape: {odd[:4]}")
    if any(tensor.is_meta for tensor in own.values()):
        module.load_state_dict(state, strict=False, assign=True)
        return len(state)
    unshare(module, state)
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return len(state)


def export_folder(
    engine: DecoderEngine,
    source: str,
    out: str | Path,
    weights: str = "ema",
    entries: Mapping[str, Any] | None = None,
    shift: float | None = None,
) -> None:
    """Write a decoder folder with the engine's weights; every rank must call it.

    VAE and scheduler are the source's, but for the shift. The folder appears complete or not at all, under ``out``.

    Args:
        engine: initialised.
        source: decoder folder the engine was loaded from.
        out: must not exist.
        weights: see :func:`full_state_dict`.
        entries: what is known of the inference settings, see :meth:`Decoder.save_pretrained`.
        shift: timestep shift that the decoder was trained with; None is the source's.

    Raises:
        CheckpointError: on every rank, if rank 0 could not write.
    """
    state = full_state_dict(engine, weights)
    publish_on_first_rank(lambda folder: _write(state, source, folder, entries, shift), out)


def publish_on_first_rank(build: Callable[[Path], None], out: str | Path) -> None:
    """:func:`~verl_uae.files.publish_folder` on rank 0; every rank must call it, and waits as long as rank 0
    takes.

    Raises:
        CheckpointError: on every rank, if rank 0 could not write.
    """
    with together(lambda text: CheckpointError(out, text)):
        if torch.distributed.get_rank() == 0:
            try:
                publish_folder(build, out)
            except RuntimeError as error:
                raise CheckpointError(out, f"{type(error).__name__}: {error}") from error


def _write(
    state: dict[str, Tensor], source: str, folder: Path, entries: Mapping[str, Any] | None, shift: float | None
) -> None:
    module = DecoderModule.from_pretrained(source, empty=True)
    load_full_state(module, state)
    family = family_of(source, shift=shift)
    modules = {name: getattr(module, part) for part, name in family.trained.items()}
    modules |= {
        name: load_model(kind, source, subfolder=name)
        for name, kind in family.components.items()
        if name not in modules
    }
    Decoder(family, modules).save_pretrained(str(folder), entries)


def _chosen(engine: DecoderEngine, weights: str) -> AbstractContextManager[Any]:
    if weights == "live":
        return nullcontext()
    return engine.reference() if weights == "reference" else engine.shadow(weights).swapped()


def _gather(engine: FSDPEngine, names: Container[str] | None = None) -> dict[str, Tensor]:
    """Full tensors on rank 0, all or those of these names."""
    module = engine.module
    if isinstance(module, FullyShardedDataParallel):
        return {name: tensor for name, tensor in _gather_fsdp1(engine).items() if names is None or name in names}
    reshard(module)
    gathered: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if names is not None and plain_name(name) not in names:
            continue
        full = full_tensor(tensor)
        if engine.rank == 0:
            gathered[plain_name(name)] = full.detach().to("cpu", copy=True)
    return gathered


def full_tensor(tensor: Any) -> Tensor:
    """A parameter's or buffer's whole value, gathered if it is sharded; every rank must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    # Gathered where the collectives run: offloaded shards are on the host.
    on_device: Any = tensor.to(get_device_id())
    return on_device.full_tensor()


def _gather_fsdp1(engine: FSDPEngine) -> dict[str, Tensor]:
    module = engine.module
    if engine.is_param_offload_enabled:
        load_fsdp_model_to_gpu(module)
    settings = FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(module, StateDictType.FULL_STATE_DICT, settings):
        state = {plain_name(name): tensor.detach().clone() for name, tensor in module.state_dict().items()}
    if engine.is_param_offload_enabled:
        offload_fsdp_model_to_cpu(module)
    return state if engine.rank == 0 else {}
