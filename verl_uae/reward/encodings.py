# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the feature terms of one scorer share: networks, forward passes, features of source pictures.

Sharing must not show in the values. A forward pass is shared only between calls that see the very same samples at the
same places. Kernels choose their summation order by shape and place, so a source picture that may come from the cache
is always encoded alone: its features are the same bits whatever was cached before, also after a resume.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Hashable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from verl_uae.reward.record import RewardBatch

#: One tensor per stage of a network, each (B, ...).
Features = tuple[Tensor, ...]
Outputs = Mapping[str, Features]


class Encoder(Protocol):
    """What is asked of a term that shares its network: see :class:`~verl_uae.reward.terms.features.EncoderTerm`."""

    model: nn.Module
    mode: str
    settings: Hashable

    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Outputs: ...


@dataclass(slots=True)
class Counters:
    """How often things happened since the scorer was built."""

    forward_passes: int = 0
    """Calls of a network, of all terms."""
    shared_passes: int = 0
    """Calls that a term was spared because another term had made them."""
    source_hits: int = 0
    """Source pictures found in the cache."""
    source_misses: int = 0
    """Source pictures encoded anew."""


@dataclass(slots=True)
class _Group:
    """Terms with equal settings."""

    model: nn.Module
    modes: set[str] = field(default_factory=set)
    terms: int = 0


class Encodings:
    """Shared by the terms of one scorer.

    Args:
        cache_bytes: host memory for features of source pictures, 0 or more; the longest unused go first. 0 keeps none,
            and source pictures are then encoded in batches.
    """

    def __init__(self, cache_bytes: int = 0) -> None:
        self.counters = Counters()
        self._groups: dict[Hashable, _Group] = {}
        self._cache: LRUCache[Hashable, Outputs] = LRUCache(cache_bytes, getsizeof=_size)
        # A term that was too late may still run beside the next one.
        self._lock = threading.Lock()

    def join(self, term: Encoder) -> None:
        """Give a term the network of the terms with equal settings, if there are any."""
        group = self._groups.setdefault(term.settings, _Group(term.model))
        term.model = group.model
        group.modes.add(term.mode)
        group.terms += 1

    def reconstruction(self, term: Encoder, batch: RewardBatch) -> Features:
        """Features (B, ...) of the reconstructions, one tensor per stage."""
        return self._shared(term, batch, "reconstruction", batch.reconstruction_B3HW)[term.mode]

    def source(self, term: Encoder, batch: RewardBatch) -> Features:
        """Features (B, ...) of the source pictures, one tensor per stage."""
        if self._cache.maxsize == 0:
            return self._shared(term, batch, "source", batch.source_B3HW)[term.mode]
        rows = [self._source_row(term, batch, index) for index in range(len(batch))]
        return tuple(torch.cat(stage).to(batch.device, non_blocking=True) for stage in zip(*rows, strict=True))

    def _shared(self, term: Encoder, batch: RewardBatch, side: str, images_B3HW: Tensor) -> Outputs:
        group = self._groups[term.settings]
        if batch.origin is None or group.terms < 2:
            return self._forward(term, images_B3HW, {term.mode})
        key = (term.settings, side, batch.origin.positions)
        found: Outputs | None = batch.origin.batch.shared.get(key)
        if found is not None:
            with self._lock:
                self.counters.shared_passes += 1
            return found
        found = self._forward(term, images_B3HW, group.modes)
        batch.origin.batch.keep(key, found)
        return found

    def _forward(self, term: Encoder, images_B3HW: Tensor, modes: Set[str]) -> Outputs:
        with self._lock:
            self.counters.forward_passes += 1
        return term.outputs(images_B3HW, modes)

    def _source_row(self, term: Encoder, batch: RewardBatch, index: int) -> Features:
        key = (term.settings, self._digest(batch, index))
        with self._lock:
            found = self._cache.get(key)
            self.counters.source_hits += found is not None
            self.counters.source_misses += found is None
        if found is None:
            outputs = self._forward(term, batch.source_B3HW[index : index + 1], self._groups[term.settings].modes)
            found = {mode: tuple(_kept(stage) for stage in stages) for mode, stages in outputs.items()}
            # An entry larger than the whole cache is not kept.
            with self._lock, contextlib.suppress(ValueError):
                self._cache[key] = found
        return found[term.mode]

    def _digest(self, batch: RewardBatch, index: int) -> bytes:
        if batch.origin is None:
            return picture_digest(batch.source_B3HW[index])
        position = batch.origin.positions[index]
        found: bytes | None = batch.origin.batch.shared.get(position)
        if found is None:
            found = picture_digest(batch.source_B3HW[index])
            batch.origin.batch.keep(position, found)
        return found


def picture_digest(image_3HW: Tensor) -> bytes:
    """SHA-256 of a picture's shape and values."""
    array: Any = image_3HW.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()


def _kept(stage: Tensor) -> Tensor:
    # A class token is a view of all tokens: without a copy the cache would hold them all and count one.
    return stage.detach().to("cpu", copy=True)


def _size(outputs: Outputs) -> int:
    return sum(stage.numel() * stage.element_size() for stages in outputs.values() for stage in stages)
