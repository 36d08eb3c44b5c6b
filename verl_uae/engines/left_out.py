# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Updates that are left out because nothing in them trains, in the metrics of verl's training worker.

A gradient of zero is no reason to stand still: an optimiser with momentum or weight decay moves the weights all the
same. So an engine leaves such an update out, and its metrics say how many there were instead of a loss of 0, a gradient
norm of 0 or a mean over nothing. The learning rate's schedule is over steps of the run and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

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
