# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Conditions of captions, computed once and kept in host memory.

Shape legend: B captions, L text positions, E language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from cachetools import LRUCache
from torch import Tensor

from verl_uae.chain.conditioner import Conditioner
from verl_uae.devices import FittingBatch, is_out_of_memory

#: Captions encoded together, fewer where memory does not hold them. Always as many, filled up where there are fewer:
#: kernels choose their order of summation by the shape of the work, so a condition would otherwise depend on its
#: neighbours in the last bits.
BATCH = 8


class Conditions(NamedTuple):
    """What captions are drawn from, in their order."""

    states: list[Tensor]
    """(L, E) each, in host memory, dtype of the conditioner."""
    truncated: list[bool]
    """Whether the caption was cut to fit."""
    failures: list[str]
    """Why a caption cannot be encoded; its states are those of the empty caption. Empty where it can."""


class ConditionCache:
    """States of captions; the least recently used go first.

    Args:
        conditioner: computes them.
        max_conditions: how many are kept.
    """

    def __init__(self, conditioner: Conditioner, max_conditions: int) -> None:
        self.conditioner = conditioner
        self._batch = FittingBatch(BATCH, "captions of the conditioner")
        self._kept: LRUCache[str, tuple[Tensor, bool]] = LRUCache(max_conditions)

    def get(self, captions: Sequence[str]) -> Conditions:
        """Conditions of captions; one that cannot be encoded costs only itself."""
        found = {caption: self._kept[caption] for caption in captions if caption in self._kept}
        missing = [caption for caption in dict.fromkeys(captions) if caption not in found]
        failures: dict[str, str] = {}
        self._encode(missing, found, failures)
        if failures:
            self._encode([""], found, {})
        self._kept.update(found)
        used = [found["" if caption in failures else caption] for caption in captions]
        reasons = [failures.get(caption, "") for caption in captions]
        return Conditions([states for states, _ in used], [cut for _, cut in used], reasons)

    def forget(self) -> None:
        """Drop everything kept, after the conditioner's weights have changed."""
        self._kept.clear()

    def _encode(self, captions: list[str], found: dict[str, tuple[Tensor, bool]], failures: dict[str, str]) -> None:
        # Where memory runs out batches get smaller: one by one does not help, since all are filled up.
        self._batch.map(len(captions), lambda rows: self._encode_batch(captions[rows], found, failures), filled=True)

    def _encode_batch(self, some: list[str], found: dict[str, tuple[Tensor, bool]], failures: dict[str, str]) -> None:
        try:
            condition = self.conditioner.encode(some + [""] * (self._batch.size - len(some)))
        except (TypeError, ValueError, RuntimeError) as error:
            # What tokenizers raise on odd text: a batch is tried again one by one, which costs only the captions at
            # fault. Without the empty caption nothing works.
            if some == [""] or (self._batch.size > 1 and is_out_of_memory(error)):
                raise
            if len(some) == 1:
                failures[some[0]] = f"condition: {type(error).__name__}: {error}"
                return
            for caption in some:
                self._encode_batch([caption], found, failures)
            return
        states_BLE = condition.states_BLE.to("cpu")
        for caption, states_LE, cut in zip(some, states_BLE, condition.truncated_B.tolist(), strict=False):
            found[caption] = (states_LE.clone(), bool(cut))


def stack_states(states: Sequence[Tensor], device: str | torch.device) -> Tensor:
    """Conditions of a micro-batch, shape (B, L, E), on the device."""
    return torch.stack(list(states)).to(device, non_blocking=True)
