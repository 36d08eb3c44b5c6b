# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of one update of the decoder policy, over all valid samples of all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Statistics by figure; others get their mean alone.
STATISTICS: Mapping[str, tuple[str, ...]] = {
    "ratio": ("mean", "std", "min", "max"),
    "k": ("mean", "max"),
    "log_prob_difference": ("mean", "max"),
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}


class Figures:
    """Collects one number per sample and place; a mini-batch has a few thousand of each."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, values: Mapping[str, Tensor], valid_B: Tensor, step: int | None) -> None:
        """Record figures of shape (B,) of one micro-batch.

        Args:
            values: figure by name.
            valid_B: which samples count.
            step: number of the denoising step, if they belong to one.
        """
        for name, value_B in values.items():
            numbers = value_B.detach()[valid_B].double().tolist()
            self._values[name] += numbers
            if step is not None:
                self._values[f"step{step:02d}/{name}"] += numbers

    def gather(self, group: Any) -> dict[str, list[float]]:
        """Statistics over all ranks, the same on each.

        Returns:
            ``name/statistic`` and ``stepNN/name/statistic`` to a list of one number, which verl's training worker
            flattens and its trainer averages (takes the maximum of, where the name has "max"). Figures without a valid
            sample are left out.
        """
        parts: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(parts, dict(self._values), group=group)
        found: dict[str, list[float]] = {}
        for name in sorted({name for part in parts for name in part}):
            numbers = [number for part in parts for number in part.get(name, ())]
            for statistic in STATISTICS.get(name.split("/")[-1], ("mean",)) if numbers else ():
                found[f"{name}/{statistic}"] = [float(_FUNCTIONS[statistic](numbers))]
        return found
