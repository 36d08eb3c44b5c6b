# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Conditions of captions, computed once and kept in host memory.

Shape legend: B captions, L text positions, E language-model width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from verl_uae.decoder.conditioner import Conditioner

#: Captions encoded together. Always as many, filled up where there are fewer: kernels choose their order of summation
#: by the shape of the work, so a condition would otherwise depend on its neighbours in the last bits.
BATCH = 8


class ConditionCache:
    """States of captions; the least recently used go first.

    Args:
        conditioner: computes them.
        max_conditions: how many are kept.
    """

    def __init__(self, conditioner: Conditioner, max_conditions: int) -> None:
        self.conditioner = conditioner
        self.max_conditions = max_conditions
        self._kept: OrderedDict[str, tuple[Tensor, bool]] = OrderedDict()

    def get(self, captions: Sequence[str]) -> tuple[list[Tensor], list[bool]]:
        """States (L, E) of each caption, in host memory, and which captions were cut to fit."""
        found = {caption: self._kept[caption] for caption in captions if caption in self._kept}
        missing = [caption for caption in dict.fromkeys(captions) if caption not in found]
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]
            condition = self.conditioner.encode(some + [""] * (BATCH - len(some)))
            states_BLE = condition.states_BLE.to("cpu")
            for caption, states_LE, cut in zip(some, states_BLE, condition.truncated_B.tolist(), strict=False):
                found[caption] = (states_LE.clone(), bool(cut))
        for caption, value in found.items():
            self._kept[caption] = value
            self._kept.move_to_end(caption)
        while len(self._kept) > self.max_conditions:
            self._kept.popitem(last=False)
        return [found[caption][0] for caption in captions], [found[caption][1] for caption in captions]


def stack_states(states: Sequence[Tensor], device: str | torch.device) -> Tensor:
    """Conditions of a micro-batch, shape (B, L, E), on the device."""
    return torch.stack(list(states)).to(device)
