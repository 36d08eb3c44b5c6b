# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors on disk that are dear to make and always the same: latents of pictures, conditions of captions.

One safetensors file per item; many processes share a folder. A file counts only if it was made by the same models with
the same settings and holds every byte it was written with; anything else is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor


def fingerprint_of_folder(path: str | PathLike[str]) -> str:
    """SHA-256, in hex, over names and contents of the weight, configuration and tokenizer files of a model folder.

    Contents are read once per process for each (path, size, modification time).

    Raises:
        CheckpointError: if it is not a folder with such files.
    """
    raise NotImplementedError


def latent_fingerprint(vae: str | PathLike[str], dtype: torch.dtype) -> str:
    """Fingerprint for `TensorCache` of latents: the VAE's folder, its dtype, and the rule of resizing."""
    raise NotImplementedError


def condition_fingerprint(language_model: str | PathLike[str], dtype: torch.dtype, *, length: int, role: str) -> str:
    """Fingerprint for `TensorCache` of conditions: the language model's folder, its dtype, length and role."""
    raise NotImplementedError


def latent_name(content_key: str, size: tuple[int, int]) -> str:
    """Name of a picture's latent in a cache: ``Pair.content_key`` and the (H, W) of its bucket."""
    raise NotImplementedError


class TensorCache:
    """Named tensors in a folder.

    Args:
        folder: made if it is missing; the same one may serve several caches and processes.
        fingerprint: what makes the tensors, e.g. `latent_fingerprint`; files of another one are never used.

    Attributes:
        hits, misses, writes, corrupt: counters of this object. A corrupt file also is a miss.
    """

    def __init__(self, folder: str | PathLike[str], fingerprint: str) -> None:
        raise NotImplementedError

    def get(self, name: str) -> dict[str, Tensor] | None:
        """Tensors of an item, on the CPU, or None where there are none; never raises for what is on disk.

        Args:
            name: any text, such as `latent_name` or a caption.
        """
        raise NotImplementedError

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors of an item; after an error of the disk, such as a full one, nothing is written any more."""
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        """``hits``, ``misses``, ``writes`` and ``corrupt``."""
        raise NotImplementedError
