# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of one update, over all valid samples of all ranks, and updates that are left out because nothing trains.

A gradient of zero is no reason to stand still: an optimiser with momentum or weight decay moves the weights all the
same. So an engine leaves such an update out, and its metrics say how many there were instead of a loss of 0, a gradient
norm of 0 or a mean over nothing. The learning rate's schedule is over steps of the run and goes on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics

#: Figure: how far a log-probability that sampling stored is from that of the module that trains, with the same weights.
SAMPLER_DIFFERENCE = "sampler_log_prob_difference"
#: Statistics by figure; others get their mean alone.
STATISTICS: Mapping[str, tuple[str, ...]] = {
    SAMPLER_DIFFERENCE: ("max",),
    "ratio": ("mean", "std", "min", "max"),
    "k": ("mean", "max"),
    "log_prob_difference": ("mean", "max"),
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}


class Figures:
    """Collects one number per sample and place; a mini-batch has a few thousand of each.

    They stay on the device until the update is over: reading one makes the host wait for everything that was started
    before it, and nothing is started meanwhile.
    """

    def __init__(self) -> None:
        self._names: list[tuple[str, int | None]] = []
        self._columns: list[Tensor] = []
        """Per entry of ``_names`` the figures and which of them count, (2, B), float64."""
        self._losses: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor], valid_B: Tensor, step: int | None) -> None:
        """Record figures of shape (B,) of one micro-batch.

        Args:
            values: figure by name.
            valid_B: which samples count.
            step: number of the denoising step, if they belong to one.
        """
        for name, value_B in values.items():
            self._names.append((name, step))
            self._columns.append(torch.stack([value_B.detach().double(), valid_B.double()]))

    def add_loss(self, loss: Tensor) -> None:
        """Record the loss of a micro-batch, or of one place of it, a single number."""
        self._losses.append(loss.detach().double())

    def gather(self, group: Any) -> tuple[dict[str, list[float]], list[float]]:
        """Statistics over all ranks, the same on each, and the losses of this rank; the one wait for the device.

        Returns:
            ``name/statistic`` and ``stepNN/name/statistic`` to a list of one number, which verl's training worker
            flattens and its trainer averages (takes the maximum of, where the name has "max"). Figures without a valid
            sample are left out. And the losses in the order they were recorded.
        """
        values, losses = self._read()
        parts: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(parts, values, group=group)
        found: dict[str, list[float]] = {}
        for name in sorted({name for part in parts for name in part}):
            numbers = [number for part in parts for number in part.get(name, ())]
            for statistic in STATISTICS.get(name.split("/")[-1], ("mean",)) if numbers else ():
                found[f"{name}/{statistic}"] = [float(_FUNCTIONS[statistic](numbers))]
        return found, losses

    def _read(self) -> tuple[dict[str, list[float]], list[float]]:
        """Valid figures by name, and the losses, in one copy to the host."""
        rows = [row_B for column_2B in self._columns for row_B in column_2B]
        parts = [*rows, *(loss[None] for loss in self._losses)]
        if not parts:
            return {}, []
        pieces = torch.cat(parts).cpu().split([len(part) for part in parts])
        found: defaultdict[str, list[float]] = defaultdict(list)
        for number, (name, step) in enumerate(self._names):
            numbers = pieces[2 * number][pieces[2 * number + 1] > 0].tolist()
            found[name] += numbers
            if step is not None:
                found[f"step{step:02d}/{name}"] += numbers
        return dict(found), torch.cat(pieces[len(rows) :]).tolist() if self._losses else []


def update_metrics(updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """verl's metrics of the updates of one batch: means, largest of maxima, smallest of minima, a count of those left
    out.

    ``train/first/...`` is the first update alone, where sampling and training weights are the same: the ratio is 1
    to the last bit, unless the two compute differently.
    """
    flat = [{name: _number(value) for name, value in update.items()} for update in updates]
    columns: dict[str, list[float]] = {}
    for update in flat:
        for name, value in update.items():
            columns.setdefault(name, []).append(value)
    left_out = sum(columns.pop(LEFT_OUT, ()))
    metrics = {f"train/{name}": float(value) for name, value in reduce_metrics(dict(columns)).items()}
    metrics[f"train/{LEFT_OUT}"] = left_out
    for name in ("ratio/max", "ratio/min", "log_prob_difference/max"):
        if name in flat[0]:
            metrics[f"train/first/{name}"] = flat[0][name]
    return metrics


def _number(value: Any) -> float:
    while isinstance(value, list | tuple):
        value = value[0]
    return float(value)


#: Metric: updates of a step that were left out; 1 or 0 for a single update.
LEFT_OUT = "updates_left_out"


def is_left_out(metrics: Mapping[str, Any]) -> bool:
    """Whether these are the metrics of an update that was left out."""
    value: Any = metrics.get(LEFT_OUT, 0.0)
    while isinstance(value, list):
        value = value[0]
    return bool(value)


class CountsLeftOut:
    """Mix-in before verl's ``TrainingWorker``, whose engine puts :data:`LEFT_OUT` into the metrics of an update."""

    def _postprocess_output(self, output: dict[str, Any], **context: Any) -> TensorDict:
        left_out = is_left_out(output["metrics"])
        result: TensorDict = super()._postprocess_output(output, **context)  # type: ignore[misc]
        if left_out:
            metrics = dict(tu.get(result, "metrics"))
            # verl sums an empty list of losses to 0, and divides floating-point operations by next to no time.
            metrics.pop("loss")
            if "mfu" in metrics:
                metrics["mfu"] = 0.0
            tu.assign_non_tensor(result, metrics=metrics)
        return result
