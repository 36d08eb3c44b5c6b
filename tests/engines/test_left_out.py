# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What engines and workers make of it is in test_captioner.py and test_decoder.py."""

from __future__ import annotations

from typing import Any

import pytest
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_uae.engines.update_metrics import LEFT_OUT, CountsLeftOut, is_left_out


class Worker:
    """Answers as verl's training worker does, whose loss of no micro-batch is 0."""

    def _postprocess_output(self, output: dict[str, Any], **context: Any) -> TensorDict:
        metrics = {**output["metrics"], "loss": float(sum(output["loss"])), "mfu": 1e9, "lr": 0.1}
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": metrics})


class Counting(CountsLeftOut, Worker):
    pass


@pytest.mark.parametrize(("metrics", "expected"), [({}, False), ({LEFT_OUT: [[0.0], [0.0]]}, False)])
def test_what_was_not_left_out(metrics: dict[str, Any], expected: bool) -> None:
    assert is_left_out(metrics) is expected
    found = tu.get(Counting()._postprocess_output({"loss": [2.0], "metrics": metrics}), "metrics")
    assert (found["loss"], found["mfu"]) == (2.0, 1e9)


@pytest.mark.parametrize("count", [1.0, [1.0], [[1.0], [1.0]]])
def test_an_update_that_was_left_out_has_no_loss_and_no_speed(count: Any) -> None:
    assert is_left_out({LEFT_OUT: count})
    found = tu.get(Counting()._postprocess_output({"loss": [], "metrics": {LEFT_OUT: count}}), "metrics")
    assert found == {LEFT_OUT: count, "mfu": 0.0, "lr": 0.1}
