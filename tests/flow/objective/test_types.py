# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.flow.objective.cases import Transitions, forward_inputs
from verl_uae.flow.objective import ForwardInputs, TransitionInputs, bind_objective

FORWARD = ("nft", "awm", "dgpo", "crd")


@pytest.mark.parametrize("name", ["flow_grpo", "dppo", "grpo_guard", *FORWARD])
def test_output_is_one_number_per_sample_and_metrics_carry_no_gradient(name) -> None:
    case = Transitions(batch=5)
    velocity = case.nearby(0.1).requires_grad_()
    output = bind_objective(name)(forward_inputs(batch=5) if name in FORWARD else case(velocity))
    assert output.loss_B.shape == (5,) and output.loss_B.requires_grad
    assert output.metrics and all(value.shape == (5,) for value in output.metrics.values())
    assert all(value.is_floating_point() and not value.requires_grad for value in output.metrics.values())


def test_inputs_cannot_be_changed() -> None:
    case = Transitions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        case(case.old_velocity).std = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        forward_inputs().sigma_B = torch.zeros(8)


@pytest.mark.parametrize(
    ("name", "field"),
    [("dppo", "old_mean_BCHW"), ("grpo_guard", "old_mean_BCHW"), *((each, "old_velocity_BCHW") for each in FORWARD)],
)
def test_only_what_another_pass_computes_may_be_absent_and_is_missed_by_name(name, field) -> None:
    case = Transitions()
    inputs = forward_inputs() if name in FORWARD else case(case.old_velocity)
    with pytest.raises(ValueError, match=f"{name!r} needs {field}, which is None"):
        bind_objective(name)(dataclasses.replace(inputs, **{field: None}))
    optional = {
        entry.name
        for kind in (TransitionInputs, ForwardInputs)
        for entry in dataclasses.fields(kind)
        if "None" in str(entry.type)
    }
    assert optional == {"old_mean_BCHW", "old_velocity_BCHW", "reference_velocity_BCHW", "group_mean_B"}
