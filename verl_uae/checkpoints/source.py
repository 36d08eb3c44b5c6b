# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from, a local folder or a hub repository at a revision, and which of its files are read.

Weights are safetensors with a sound header, and nothing else.

A repository can bring Python files that transformers or diffusers would run (``auto_map``, custom pipelines). That is
refused unless it is asked for and the repository's revision is pinned to a full commit, so that what was read is what
runs.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from verl_uae.checkpoints.names import (
    CONFIG,
    GENERATION_CONFIG,
    MANIFEST,
    MARKER,
    MODEL_INDEX,
    PROCESSOR_FILES,
    RENAMED_FOLDERS,
)
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.files import LFS_POINTER, is_lfs_pointer, open_regular
from verl_uae.paths import hub_errors, is_hub_id, model_source, reason_of
from verl_uae.text import parse_json, read_text
from verl_uae.waiting import saying

if TYPE_CHECKING:
    from torch import Tensor

#: Libraries whose classes a ``model_index.json`` may name.
_LIBRARIES = ("diffusers", "transformers", "verl_uae")

#: Every configuration in which transformers looks for ``auto_map``.
_CONFIGS = (CONFIG, GENERATION_CONFIG, *PROCESSOR_FILES, "video_preprocessor_config.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")

#: Endings of files that are read with pickle.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

#: Weights of a diffusers and of a transformers component, without their ending.
STEMS = ("diffusion_pytorch_model", "model")

_MAX_HEADER = 100_000_000
_LARGEST_POINTER = 1024


def local_folder(
    source: str | Path, *, revision: str | None = None, parts: Sequence[str] = (), remote_code: bool = False
) -> Path:
    """The folder of a model, fetched from the hub if it is not a local one; it needs no code of its own, or this was
    asked for.

    Args:
        source: local folder, or hub id ``owner/name``.
        revision: commit, tag or branch of the hub repository.
        parts: subfolders that are needed; all files if empty. Pickles are never fetched.
        remote_code: accept Python code that the repository brings.

    Raises `CheckpointError`: there is no such model, or it brings code; `ConfigError`: code is accepted without a
    pinned revision, or a local folder is given one.
    """
    check_pin(remote_code, revision)
    source = model_source(source)
    folder = _fetched(source, revision, parts) if is_hub_id(source) else Path(source)
    if not is_hub_id(source) and revision is not None:
        raise ConfigError("--revision", f"{source} is a local folder and has no revision")
    if not remote_code:
        refuse_code(folder)
    return folder


def refuse_code(folder: Path) -> None:
    """Refuse a folder that would have a library run Python code of its own. Raises `CheckpointError`: naming the
    configuration file that asks for it."""
    if code := brought_code(folder):
        raise CheckpointError(folder / code[0], "needs Python code of its own (trust_remote_code), which is refused")


def check_pin(remote_code: bool, revision: str | None) -> None:
    """Refuse remote code of a revision that can move. Raises `ConfigError`: ``revision`` is not a full commit of 40
    hexadecimal digits."""
    if remote_code and not (revision and _COMMIT.fullmatch(revision)):
        reason = f"needs --revision with a commit of 40 hexadecimal digits, got {revision}"
        raise ConfigError("--trust-remote-code", reason)


def brought_code(folder: Path) -> list[str]:
    """Configuration files of a folder and its components that make loaders run Python code of the repository."""
    files = [path for name in _CONFIGS for path in (folder / name, *folder.glob(f"*/{name}"))]
    found = [path for path in files if path.is_file() and _asks_for_code(read_object(path))]
    index = folder / MODEL_INDEX
    if index.is_file() and _names_code(read_object(index)):
        found.append(index)
    return [path.relative_to(folder).as_posix() for path in found]


def _asks_for_code(config: Any) -> bool:
    """Whether a configuration of transformers, or a part of one, names classes or attention kernels of a repository."""
    if isinstance(config, list):
        return any(map(_asks_for_code, config))
    if not isinstance(config, dict):
        return False
    kernels = any("/" in str(value) for name, value in config.items() if name.endswith("attn_implementation"))
    return "auto_map" in config or kernels or any(map(_asks_for_code, config.values()))


def _names_code(index: dict[str, Any]) -> bool:
    """Whether a diffusers index names a class of no known library, for the pipeline or one of its components."""
    lists = [value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
    # A component is a library and a class; other lists are settings of the pipeline, such as layers to read.
    parts = [value for value in lists if any(isinstance(item, str) for item in value)]
    libraries = [str(library).split(".")[0] for library, *_ in parts if library is not None]
    return isinstance(index.get("_class_name"), list) or not set(libraries) <= set(_LIBRARIES)


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file of a model holds. Raises `CheckpointError`: it is not JSON, or holds something
    else."""
    try:
        with open_regular(path) as file:
            content = parse_json(file.read().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, "is not a JSON object")
    return content


def _fetched(source: str, revision: str | None, parts: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*(f"{part}/*" for part in parts), "*.json"] if parts else None
    endings = [f"*{ending}" for ending in PICKLES]
    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": endings}
    errors = hub_errors()
    try:
        with saying(f"{source} from the hub"):
            return Path(snapshot_download(source, **options))
    except errors as error:
        # Without a network, what has been fetched before will do.
        try:
            return Path(snapshot_download(source, local_files_only=True, **options))
        except (OSError, ValueError):
            raise CheckpointError(source, reason_of(error, source, revision=revision)) from error


# ---------------------------------------------------------------- files


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
    """Refuse what a library would wait for or fail at, wherever it looks below a folder. Raises `CheckpointError`:
    naming a pipe, a socket, a device, a link that leads nowhere or a pointer of Git LFS."""
    for path in walk(folder):
        if not path.is_file() and not path.is_dir():
            raise CheckpointError(path, "is no file: a pipe, a socket, a device, or a link that leads nowhere")
        if path.is_file() and path.stat().st_size <= _LARGEST_POINTER and is_lfs_pointer(path.read_bytes()):
            raise CheckpointError(path, LFS_POINTER)


def refuse_renamed(folder: Path) -> None:
    """Refuse a step or model folder whose parts have names of an older version. Raises `CheckpointError`: naming the
    part, its name now, and what else speaks of it."""
    for old, new in RENAMED_FOLDERS.items():
        if (folder / old).is_dir():
            reason = f"is of an older version of verl_uae: the folder is called {new}/ now; rename it"
            if (folder / MARKER).is_file():
                reason += f", and the names that begin with {old}/ in {MARKER}"
            elif (folder / MANIFEST).is_file():
                reason += f", and remove {MANIFEST}, whose names and digest are those of before"
            raise CheckpointError(folder / old, reason)


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header of a safetensors file strictly: the shape of every tensor by name.

    safetensors itself refuses holes, overlaps, offsets beyond the file and lengths that do not fit the shape; beyond
    that a name may occur once only, since readers differ in which of two they take. Raises `CheckpointError`: the
    header is not sound.
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
    """The safetensors files that diffusers or transformers would load from a component's folder. Raises
    `CheckpointError`: there are none (pickles are named), or the index names files that are not there."""
    for stem in STEMS:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if single.is_file():
            return [single]
        if index.is_file():
            return indexed_files(index)
    found = [path.name for path in pickles(folder)]
    hint = f"; pickles are refused: {', '.join(found)}" if found else ""
    raise CheckpointError(folder, f"has no {STEMS[0]}.safetensors and no {STEMS[1]}.safetensors{hint}")


def headers(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of some files, by name. Raises `CheckpointError`: a file is not sound, or a tensor is in
    two of them."""
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        header = check_safetensors(path)
        if twice := sorted(found.keys() & header.keys()):
            raise CheckpointError(path, f"{twice[0]} is in another shard too")
        found.update(header)
    return found


def read_files(paths: Sequence[Path], names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of some files one by one, as they are stored, those of some names or all; errors as of `headers`."""
    headers(paths)
    for path in paths:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():
                if names is None or name in names:
                    yield name, opened.get_tensor(name)


def read_tensors(folder: Path, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """`read_files` of a component's folder; errors as of `weight_files` too."""
    return read_files(weight_files(folder), names)


def same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], where: Path) -> None:
    """Compare two sets of tensors bit for bit, names, shapes and dtypes included. Raises `CheckpointError`: naming the
    tensors that differ."""
    # Heavy: the command line imports this module for every command.
    import torch

    def bits(tensor: Tensor) -> Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    odd = sorted(found.keys() ^ wanted.keys())
    for name in sorted(found.keys() & wanted.keys()):
        one, other = found[name], wanted[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape) or not torch.equal(bits(one), bits(other)):
            odd.append(name)
    if odd:
        raise CheckpointError(where, f"{len(odd)} tensors came back other than written: {odd[:4]}")


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names. Raises `CheckpointError`: it is no index, or names something else than safetensors
    that lie beside it."""
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
