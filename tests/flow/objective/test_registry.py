# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from tests.flow.objective.cases import Transitions, forward_inputs
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import (
    ObjectiveOutput,
    bind_objective,
    get_objective,
    objective_names,
    register_objective,
)

NEEDS = ("log_prob_B", "advantage_B")


pytestmark = pytest.mark.usefixtures("own_objectives")


def _mine(log_prob_B, advantage_B, *, scale):
    return ObjectiveOutput(-scale * advantage_B * log_prob_B, {"seen": log_prob_B.detach()})


def test_published_defaults() -> None:
    assert objective_names() == ["dppo", "flow_grpo", "grpo_guard", "nft"]
    assert get_objective("flow_grpo").defaults == {"clip_low": 1e-4, "clip_high": 1e-4}
    assert get_objective("dppo").defaults == {"threshold": 5e-6, "direction": "ratio"}
    assert get_objective("grpo_guard").defaults == {"clip_low": 2e-6, "clip_high": 2e-6}
    assert get_objective("nft").defaults == {"beta": 1.0, "advantage_max": 5.0}
    assert {name: get_objective(name).kind for name in objective_names()} == {
        "dppo": "transition",
        "flow_grpo": "transition",
        "grpo_guard": "transition",
        "nft": "forward",
    }


def test_a_registered_function_gets_its_inputs_and_parameters() -> None:
    register_objective("mine", kind="transition", needs=NEEDS, defaults={"scale": 1.0})(_mine)
    case = Transitions()
    inputs = case(case.nearby(0.1))
    assert torch.equal(bind_objective("mine")(inputs).loss_B, -inputs.advantage_B * inputs.log_prob_B)
    twice = bind_objective("mine", {"scale": 2})
    assert twice.params == {"scale": 2} and torch.equal(
        twice(inputs).loss_B, -2 * inputs.advantage_B * inputs.log_prob_B
    )
    assert get_objective("mine").defaults == {"scale": 1.0}


@pytest.mark.parametrize(
    ("name", "params", "key", "message"),
    [
        ("dpo", {}, "name", r"unknown objective 'dpo'. Did you mean 'dppo'\? Known: dppo, flow_grpo, grpo_guard, nft"),
        ("zzz", {}, "name", r"unknown objective 'zzz'. Known: dppo"),
        ("dppo", {"treshold": 1.0}, "params.treshold", r"Did you mean 'threshold'\? Known: direction, threshold"),
        ("nft", {"clip_low": 1.0}, "params.clip_low", r"unknown parameter of 'nft'. Known: advantage_max, beta"),
    ],
)
def test_unknown_names_are_refused_with_their_key_and_the_closest(name, params, key, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        bind_objective(name, params)
    assert caught.value.key == f"uae.policy.objective.{key}"


def test_a_name_is_claimed_once() -> None:
    with pytest.raises(ConfigError, match=r"already registered by verl_uae.flow.objective.dppo:dppo") as caught:
        register_objective("dppo", kind="transition", needs=NEEDS, defaults={"scale": 1.0})(_mine)
    assert caught.value.key == "uae.policy.objective.name"


def _positional(log_prob_B, advantage_B, scale):
    return None


def _other_order(advantage_B, log_prob_B, *, scale):
    return None


def _variadic(log_prob_B, advantage_B, *, scale, **rest):
    return None


def _one_short(log_prob_B, *, scale):
    return None


def _one_more(log_prob_B, advantage_B, *, scale, more):
    return None


@pytest.mark.parametrize("function", [_positional, _other_order, _variadic, _one_short, _one_more])
def test_a_wrong_signature_is_refused_at_registration(function) -> None:
    with pytest.raises(TypeError, match=r"'mine'.*signature must be \(log_prob_B, advantage_B, \*, scale\)"):
        register_objective("mine", kind="transition", needs=NEEDS, defaults={"scale": 1.0})(function)
    assert "mine" not in objective_names()


def test_unknown_kind_and_needs_are_refused_at_registration() -> None:
    with pytest.raises(TypeError, match="kind must be one of transition, forward"):
        register_objective("mine", kind="reverse", needs=NEEDS, defaults={"scale": 1.0})(_mine)
    with pytest.raises(TypeError, match=r"ForwardInputs has no log_prob_B; it has \['velocity_BCHW'"):
        register_objective("mine", kind="forward", needs=NEEDS, defaults={"scale": 1.0})(_mine)


def test_inputs_of_the_other_kind_are_refused() -> None:
    case = Transitions()
    with pytest.raises(TypeError, match="'dppo' is of kind 'transition', got ForwardInputs"):
        bind_objective("dppo")(forward_inputs())
    with pytest.raises(TypeError, match="'nft' is of kind 'forward', got TransitionInputs"):
        bind_objective("nft")(case(case.old_velocity))


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda loss: loss, TypeError, "returned Tensor"),
        (lambda loss: ObjectiveOutput(loss.mean()), ValueError, r"loss_B must have one number per sample, \(8,\)"),
        (lambda loss: ObjectiveOutput(loss, {"x": loss[:1]}), ValueError, r"x must have one number per sample"),
    ],
)
def test_an_averaged_loss_or_metric_is_refused(output, error, message) -> None:
    def mine(log_prob_B, advantage_B):
        return output(advantage_B * log_prob_B)

    register_objective("mine", kind="transition", needs=NEEDS)(mine)
    case = Transitions()
    with pytest.raises(error, match=message):
        bind_objective("mine")(case(case.old_velocity))
