# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What may be a weight file in a model folder: safetensors with a sound header, and nothing else."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from verl_uae.errors import CheckpointError
from verl_uae.files import LFS_POINTER, is_lfs_pointer
from verl_uae.text import parse_json, read_text

#: Endings of files that are read with pickle.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

#: Weights of a diffusers and of a transformers component, without their ending.
STEMS = ("diffusion_pytorch_model", "model")

_MAX_HEADER = 100_000_000
_LARGEST_POINTER = 1024


def pickles(folder: Path) -> list[Path]:
    """Files below a folder that only pickle would read, hidden folders left out."""
    return [path for path in files_below(folder) if path.suffix.lower() in PICKLES]


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder in the order of their names, without hidden files and folders (.git, .cache)."""
    return [path for path in walk(folder) if path.is_file()]


def walk(folder: Path) -> list[Path]:
    """Everything below a folder in the order of names, whatever it is, without hidden files and folders."""
    found = sorted(folder.rglob("*"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def refuse_special(folder: Path) -> None:
    """Refuse what a library would wait for or fail at, wherever it looks below a folder.

    Raises:
        CheckpointError: naming a pipe, a socket, a device, a link that leads nowhere or a pointer of Git LFS.
    """
    for path in walk(folder):
        if not path.is_file() and not path.is_dir():
            raise CheckpointError(path, "is no file: a pipe, a socket, a device, or a link that leads nowhere")
        if path.is_file() and path.stat().st_size <= _LARGEST_POINTER and is_lfs_pointer(path.read_bytes()):
            raise CheckpointError(path, LFS_POINTER)


def stored_dtypes(folder: Path) -> dict[str, str]:
    """Types of all tensors of a component by name, as safetensors calls them: ``F32``, ``BF16``, ``I8``."""
    found: dict[str, str] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as opened:
            found.update((name, opened.get_slice(name).get_dtype()) for name in opened.keys())
    return found


def check_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header of a safetensors file strictly.

    safetensors itself refuses holes, overlaps, offsets beyond the file and lengths that do not fit the shape; beyond
    that a name may occur once only, since readers differ in which of two they take.

    Returns:
        Shape of every tensor by name.

    Raises:
        CheckpointError: the header is not sound.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise ValueError(f"header of {length} bytes")
            parse_json(file.read(length).decode("utf-8"))
        with safe_open(path, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(path, f"not a sound safetensors file: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that diffusers or transformers would load from a component's folder.

    Raises:
        CheckpointError: there are none (pickles are named), or the index names files that are not there.
    """
    for stem in STEMS:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if single.is_file():
            return [single]
        if index.is_file():
            return indexed_files(index)
    found = [path.name for path in pickles(folder)]
    hint = f"; pickles are refused: {', '.join(found)}" if found else ""
    raise CheckpointError(folder, f"has no {STEMS[0]}.safetensors and no {STEMS[1]}.safetensors{hint}")


def read_tensors(folder: Path, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a component one by one, as they are stored.

    Args:
        folder: of the component.
        names: which to read; None for all.

    Raises:
        CheckpointError: see :func:`weight_files` and :func:`check_header`.
    """
    for path in weight_files(folder):
        check_header(path)
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():
                if names is None or name in names:
                    yield name, opened.get_tensor(name)


def same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], where: Path) -> None:
    """Compare two sets of tensors bit for bit, names, shapes and dtypes included.

    Raises:
        CheckpointError: naming the tensors that differ.
    """
    odd = sorted(set(found) ^ set(wanted))
    odd += [name for name in sorted(set(found) & set(wanted)) if not _same(found[name], wanted[name])]
    if odd:
        raise CheckpointError(where, f"{len(odd)} tensors came back other than written: {odd[:4]}")


def _same(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    raw_left, raw_right = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right))
    return torch.equal(raw_left, raw_right)


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        CheckpointError: it is no index, or names something else than safetensors that lie beside it.
    """
    try:
        names = sorted(set(parse_json(read_text(index))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(index, f"not an index of weights: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(index, f"names {name!r}, which is not a safetensors file beside it")
        if not (index.parent / name).is_file():
            raise CheckpointError(index.parent / name, "missing, though the index names it")
    return [index.parent / name for name in names]
