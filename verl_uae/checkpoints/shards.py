# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Full weights from verl's FSDP shards of the decoder policy, in one process and without a process group.

verl writes one file per rank with torch.save: plain tensors and DTensors. They are read with ``weights_only=True``, so
a shard cannot run code: besides tensors torch then allows the classes that ``torch.distributed.tensor`` lists when it
is imported (DTensor, its DeviceMesh, DTensorSpec, TensorMeta and placements), and everything that is not a tensor in
the end is refused here. The whole is put together from the ranks' local parts and the layout that each
DTensor carries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from verl_uae.errors import CheckpointError

LIVE = "live"

_MODEL = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")

#: What FSDP1 and activation wrappers put into names.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def read_shards(folder: Path, weights: str = LIVE) -> dict[str, Tensor]:
    """Put the weights of a policy together: full tensors on the host by name, adapters not multiplied out.

    Args:
        folder: ``decoder_policy/`` of a checkpoint, of any number of ranks.
        weights: ``live``, or the name of a weight copy such as ``ema``: trained weights are then the copy's.

    Raises `CheckpointError`: a rank is missing, a file holds something else than tensors, or parts do not fit together.
    """
    files = _files(folder)
    names = [_plain(load_tensors(path), path) for path in files]
    for path, found in zip(files, names, strict=True):
        if set(found) != set(names[0]):
            odd = sorted(set(found) ^ set(names[0]))
            raise CheckpointError(path, f"holds other tensors than {files[0].name}: {odd[:4]}")
    copies = []
    for rank in range(0 if weights == LIVE else len(files)):
        path = shadow_file(folder, len(files), rank)
        if not path.is_file():
            raise CheckpointError(path, f"missing: the weights {weights!r} of this rank")
        state = load_tensors(path)
        if weights not in state:
            raise CheckpointError(path, f"has no weights named {weights!r}; there are {sorted(state)}")
        copies.append(_plain(state[weights], path))
        if unknown := sorted(set(copies[-1]) - set(names[0])):
            raise CheckpointError(path, f"holds weights that the policy does not have: {unknown[:4]}")
    full: dict[str, Tensor] = {}
    for name in names[0]:
        locals_ = [copy[name] for copy in copies] if copies and name in copies[0] else None
        full[name] = _join([found[name] for found in names], locals_, name, folder)
    return full


def weight_copies(folder: Path) -> list[str]:
    """Names of the weight copies beside the shards, such as ``ema``."""
    size = len(_files(folder))
    path = shadow_file(folder, size, 0)
    return sorted(load_tensors(path)) if path.is_file() else []


def _files(folder: Path) -> list[Path]:
    found = {
        path: int(match[1]) for path in folder.glob("model_world_size_*") if (match := _MODEL.fullmatch(path.name))
    }
    sizes = set(found.values())
    if not sizes:
        raise CheckpointError(folder, "holds no shards of weights" if folder.is_dir() else "there is no such folder")
    if len(sizes) != 1:
        raise CheckpointError(folder, f"holds shards of runs on different numbers of ranks: {sorted(sizes)}")
    size = sizes.pop()
    files = [model_file(folder, size, rank) for rank in range(size)]
    for path in files:
        if path not in found:
            raise CheckpointError(path, f"missing: the run had {size} ranks")
    if len(found) != size:
        raise CheckpointError(folder, f"{len(found)} shards of {size} ranks")
    return files


def model_file(folder: Path, size: int, rank: int) -> Path:
    """Where verl writes a rank's shards of the weights."""
    return folder / f"model_world_size_{size}_rank_{rank}.pt"


def shadow_file(folder: Path, size: int, rank: int) -> Path:
    """Where a rank's shards of the weight copies are."""
    return folder / f"shadows_world_size_{size}_rank_{rank}.pt"


def plain_name(name: str) -> str:
    """A parameter's or module's name without what FSDP and activation wrappers insert."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def load_tensors(path: Path) -> dict[str, Any]:
    """Tensors of a file of one rank by name, on the host and with their layouts; nothing in the file is run. Raises
    `CheckpointError`: it cannot be read, or holds something else than tensors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    except Exception as error:
        # torch raises pickle.UnpicklingError for a class that is not allowed, and importing pickle is not allowed here.
        raise CheckpointError(path, f"holds something else than tensors: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(path, f"holds a {type(state).__name__}, not weights by name")
    return state


def _plain(state: dict[str, Any], path: Path) -> dict[str, Any]:
    plain = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(path, f"{name} is a {type(tensor).__name__}, not a tensor")
        plain[plain_name(name)] = tensor
    return plain


def _join(parts: Sequence[Any], locals_: Sequence[Tensor] | None, name: str, folder: Path) -> Tensor:
    first = parts[0]
    if not isinstance(first, DTensor):
        if locals_ is not None:
            return locals_[0].clone()
        if any(not torch.equal(first, part) for part in parts[1:]):
            raise CheckpointError(folder, f"{name} is not sharded and differs between ranks")
        return first.clone()
    mesh = first.device_mesh.mesh
    if sorted(mesh.flatten().tolist()) != list(range(len(parts))):
        raise CheckpointError(folder, f"{name} is laid out over ranks {mesh.tolist()}, found are {len(parts)}")
    chunks = list(locals_) if locals_ is not None else [part.to_local() for part in parts]
    full = _gather(mesh, list(first.placements), chunks, name, folder)
    if full.shape != first.shape:
        raise CheckpointError(folder, f"the parts of {name} make {tuple(full.shape)} instead of {tuple(first.shape)}")
    return full.clone()


def _gather(mesh: Tensor, placements: list[Any], chunks: list[Tensor], name: str, folder: Path) -> Tensor:
    """The tensor of the ranks of a mesh, outermost mesh dimension first."""
    if not placements:
        return chunks[int(mesh)]
    place, rest = placements[0], placements[1:]
    if type(place) is Replicate:
        return _gather(mesh[0], rest, chunks, name, folder)
    if type(place) is Shard:
        inner = [_gather(part, rest, chunks, name, folder) for part in mesh]
        return torch.cat([part for part in inner if part.shape[place.dim] > 0 or len(inner) == 1], dim=place.dim)
    raise CheckpointError(folder, f"{name} is laid out as {place}, which is not supported")
