# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors on disk that are dear to make and always the same: latents of pictures, conditions of captions.

One safetensors file per item; many processes share a folder. A file counts only if it was made by the same models with
the same settings and holds every byte it was written with; anything else is made again. Not protected against: a
person who writes files into the folder on purpose.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from verl_uae.data.buckets import RESIZE_RULE, HeightWidth
from verl_uae.errors import CheckpointError
from verl_uae.files import sha256_of, write_bytes
from verl_uae.paths import expand

logger = logging.getLogger(__name__)

_FORMAT = "1"
_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
"""Weights, configurations, vocabularies, chat templates."""
_NO_CONTENT = frozenset({"manifest.json"})
"""Describes the folder; changes without any change of a model."""


def fingerprint_of_folder(path: str | PathLike[str]) -> str:
    """SHA-256, in hex, over names and contents of the weight, configuration and tokenizer files of a model folder.

    Contents are read once per process for each (path, size, modification time). Folders below count too. Raises
    `CheckpointError`: it is not a folder with such files.
    """
    folder = expand(path)
    try:
        found = [file for file in folder.rglob("*") if file.suffix in _SUFFIXES and file.name not in _NO_CONTENT]
        files = sorted((file.relative_to(folder).as_posix(), file, file.stat()) for file in found if file.is_file())
        entries = [(name, _content_digest(str(file), stat.st_size, stat.st_mtime_ns)) for name, file, stat in files]
    except OSError as error:
        raise CheckpointError(folder, f"cannot be read: {error}") from error
    if not entries:
        raise CheckpointError(folder, f"no folder with a {', '.join(sorted(_SUFFIXES))} file")
    return _digest(entries)


def latent_fingerprint(vae: str | PathLike[str], dtype: torch.dtype) -> str:
    """Fingerprint for `TensorCache` of latents: the VAE's folder, its dtype, and the rule of resizing."""
    return _digest(["latent", fingerprint_of_folder(vae), str(dtype), RESIZE_RULE])


def condition_fingerprint(language_model: str | PathLike[str], dtype: torch.dtype, *, length: int, role: str) -> str:
    """Fingerprint for `TensorCache` of conditions: the language model's folder, its dtype, length and role."""
    return _digest(["condition", fingerprint_of_folder(language_model), str(dtype), length, role])


def latent_name(content_key: str, size: HeightWidth) -> str:
    """Name of a picture's latent in a cache: ``Pair.content_key`` and the (H, W) of its bucket."""
    return f"{size[0]}x{size[1]}:{content_key}"


class TensorCache:
    """Named tensors in a folder, which is made if it is missing; it may serve several caches and processes.

    An item is the file ``<two hex digits>/<key>.safetensors``, the key being the SHA-256 of its name and of the
    fingerprint of what makes the tensors, e.g. `latent_fingerprint`; files of another one are never used. It appears
    whole, whoever writes. ``hits``, ``misses``, ``writes`` and ``corrupt`` count of this object; a corrupt file is a
    miss too.
    """

    def __init__(self, folder: str | PathLike[str], fingerprint: str) -> None:
        self.folder = expand(folder)
        self.fingerprint = fingerprint
        self.hits = self.misses = self.writes = self.corrupt = 0
        self._writing = True

    def path_of(self, name: str) -> Path:
        """The file of an item, whether it exists or not."""
        key = _digest([_FORMAT, self.fingerprint, name])
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, name: str) -> dict[str, Tensor] | None:
        """Tensors of an item, on the CPU, or None where there are none; never raises for what is on disk. The name is
        any text, such as `latent_name` or a caption."""
        path = self.path_of(name)
        try:
            tensors = self._read(path, name)
        except FileNotFoundError:
            self.misses += 1
            return None
        except (OSError, SafetensorError, ValueError) as error:
            self.misses += 1
            self.corrupt += 1
            logger.warning("%s: not a usable cache file, made again: %s", path, error)
            try:
                path.unlink(missing_ok=True)
            except OSError as reason:
                logger.warning("%s: cannot be removed: %s", path, reason)
            return None
        self.hits += 1
        return tensors

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors of an item; after an error of the disk, such as a full one, nothing is written any more."""
        if not self._writing:
            return
        plain = {key: tensor.detach().to("cpu").contiguous().clone() for key, tensor in tensors.items()}
        metadata = {"fingerprint": self.fingerprint, "name": _digest(name), "content": _content(plain)}
        path = self.path_of(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, save(plain, metadata))
        except OSError as error:
            self._writing = False
            logger.warning("%s: cannot be written, the cache is only read from now on: %s", path, error)
            return
        self.writes += 1

    def counters(self) -> dict[str, int]:
        """``hits``, ``misses``, ``writes`` and ``corrupt``."""
        return {name: getattr(self, name) for name in ("hits", "misses", "writes", "corrupt")}

    def _read(self, path: Path, name: str) -> dict[str, Tensor]:
        # safe_open reports a missing file as one of many errors.
        path.stat()
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Copies: what is given out must not change or vanish with the file.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        if metadata.get("fingerprint") != self.fingerprint or metadata.get("name") != _digest(name):
            raise ValueError("made by something else")
        if metadata.get("content") != _content(tensors):
            raise ValueError("contents do not match their SHA-256")
        return tensors


@lru_cache(maxsize=4096)
def _content_digest(path: str, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are there to tell a changed file from a known one."""
    return sha256_of(path)


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
