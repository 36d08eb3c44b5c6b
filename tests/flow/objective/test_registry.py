# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.flow.objective.cases import Transitions, forward_inputs
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import (
    ObjectiveOutput,
    bind_objective,
    get_objective,
    load_objective,
    register_objective,
)
from verl_uae.flow.objective.registry import OBJECTIVES

pytestmark = pytest.mark.usefixtures("own_objectives")


def _mine(log_prob_B, advantage_B, *, scale=1.0):
    return ObjectiveOutput(-scale * advantage_B * log_prob_B, {"seen": log_prob_B.detach()})


def test_published_defaults() -> None:
    assert OBJECTIVES.names() == ["awm", "crd", "dgpo", "dppo", "flow_grpo", "grpo_guard", "nft"]
    assert get_objective("flow_grpo").defaults == {"clip_low": 1e-4, "clip_high": 1e-4}
    assert get_objective("dppo").defaults == {"threshold": 5e-6, "direction": "ratio"}
    assert get_objective("grpo_guard").defaults == {"clip_low": 2e-6, "clip_high": 2e-6}
    assert get_objective("nft").defaults == {"beta": 1.0, "advantage_max": 5.0}
    assert get_objective("awm").defaults == {
        "weighting": "ghuber",
        "power": 0.25,
        "clip_low": 1.0,
        "clip_high": 1.0,
        "advantage_max": 5.0,
        "old_kl": 1.0,
    }
    assert get_objective("dgpo").defaults == {"beta": 2e3, "clip_low": 1e-3, "clip_high": 1e-3, "reference": "old"}
    assert get_objective("crd").defaults == {"beta": 1.0, "advantage_max": 5.0}
    assert {name: get_objective(name).kind for name in OBJECTIVES.names()} == {
        "awm": "forward",
        "crd": "forward",
        "dgpo": "forward",
        "dppo": "transition",
        "flow_grpo": "transition",
        "grpo_guard": "transition",
        "nft": "forward",
    }


def test_a_registered_function_gets_its_inputs_and_parameters() -> None:
    register_objective("mine")(_mine)
    case = Transitions()
    inputs = case(case.nearby(0.1))
    assert torch.equal(bind_objective("mine")(inputs).loss_B, -inputs.advantage_B * inputs.log_prob_B)
    twice = bind_objective("mine", {"scale": 2})
    assert twice.params == {"scale": 2} and torch.equal(
        twice(inputs).loss_B, -2 * inputs.advantage_B * inputs.log_prob_B
    )
    found = get_objective("mine")
    assert (found.kind, found.needs, found.defaults) == ("transition", ("log_prob_B", "advantage_B"), {"scale": 1.0})


@pytest.mark.parametrize(
    ("name", "params", "key", "message"),
    [
        ("dpo", {}, "name", r"unknown objective 'dpo'. Did you mean 'dppo'\? Known: awm, crd, dgpo, dppo"),
        ("zzz", {}, "name", r"unknown objective 'zzz'. Known: awm"),
        ("dppo", {"treshold": 1.0}, "params.treshold", r"Did you mean 'threshold'\? Known: direction, threshold"),
        ("nft", {"clip_low": 1.0}, "params.clip_low", r"unknown parameter of 'nft'. Known: advantage_max, beta"),
    ],
)
def test_unknown_names_are_refused_with_their_key_and_the_closest(name, params, key, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        bind_objective(name, params)
    assert caught.value.key == f"uae.u4g.objective.{key}"


def test_a_name_is_claimed_once() -> None:
    with pytest.raises(ConfigError, match=r"already registered by verl_uae.flow.objective.dppo:dppo") as caught:
        register_objective("dppo")(_mine)
    assert caught.value.key == "uae.u4g.objective.name"


def test_inputs_and_parameters_are_told_apart_by_name_and_not_by_place() -> None:
    @register_objective("mine", kernels=["cps"])
    def mine(scale=2.0, *, advantage_B, log_prob_B, power: float = 1.0):
        return ObjectiveOutput(-scale * advantage_B * log_prob_B)

    found = get_objective("mine")
    assert set(found.needs) == {"advantage_B", "log_prob_B"} and found.defaults == {"scale": 2.0, "power": 1.0}
    assert found.kernels == ("cps",) and mine.__name__ == "mine"
    case = Transitions()
    inputs = case(case.nearby(0.1))
    expected = -3.0 * inputs.advantage_B * inputs.log_prob_B
    assert torch.equal(
        bind_objective("mine", {"scale": 3.0})(dataclasses.replace(inputs, kernel="cps")).loss_B, expected
    )


def _without_default(log_prob_B, advantage_B, *, scale):
    return None


def _misspelt(log_prob_B, advantage, *, scale=1.0):
    return None


def _variadic(log_prob_B, advantage_B, **rest):
    return None


def _by_position(log_prob_B, advantage_B, /):
    return None


def _both_kinds(log_prob_B, velocity_BCHW, advantage_B):
    return None


def _no_kind(advantage_B, *, scale=1.0):
    return None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_without_default, "scale is no input, and a parameter has a default value. Known: advantage_B, group_mean_B"),
        (_misspelt, r"advantage is no input, .* Did you mean 'advantage_B'\?"),
        (_variadic, r"cannot be called with \*\*rest by keyword"),
        (_by_position, "cannot be called with log_prob_B by keyword"),
        (_both_kinds, "must take inputs of one kind, got log_prob_B, velocity_BCHW, advantage_B; they are"),
        (_no_kind, "must take inputs of one kind, got advantage_B; they are"),
    ],
)
def test_a_wrong_signature_is_refused_at_registration(function, message) -> None:
    with pytest.raises(TypeError, match=rf"objective 'mine' \(.*:{function.__name__}\): {message}"):
        register_objective("mine")(function)
    assert "mine" not in OBJECTIVES.names()


def test_a_package_publishes_an_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uae_test_objectives.py").write_text(
        "from verl_uae.flow.objective import ObjectiveOutput, register_objective\n"
        "@register_objective('published')\n"
        "def published(log_prob_B, advantage_B): return ObjectiveOutput(-advantage_B * log_prob_B)\n"
        "def plain(log_prob_B): ...\n"
    )
    info = tmp_path / "uae_test_objectives-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: uae_test_objectives\nVersion: 1.0\n")
    points = ["published = uae_test_objectives:published", "plain = uae_test_objectives:plain"]
    (info / "entry_points.txt").write_text("\n".join(["[verl_uae.objectives]", *points]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(OBJECTIVES, "_group", "verl_uae.objectives")
    assert {"plain", "published"} <= set(OBJECTIVES.names())
    assert bind_objective("published").objective.needs == ("log_prob_B", "advantage_B")
    with pytest.raises(ConfigError, match=r"'plain' .* cannot be loaded: TypeError: .* is not registered as 'plain'"):
        get_objective("plain")
    # By path, as any module.
    assert load_objective("pkg://uae_test_objectives", "published") is get_objective("published")


def _figure(velocity_BCHW, advantage_B, scale):
    return scale * advantage_B * velocity_BCHW.flatten(1).mean(1)


def _of_group(velocity_BCHW, advantage_B, group_mean_B, *, scale=2.0):
    return ObjectiveOutput(velocity_BCHW.flatten(1).mean(1) - group_mean_B)


def test_a_figure_of_the_group_gets_inputs_and_parameters_and_no_gradient() -> None:
    register_objective("mine", group=_figure)(_of_group)
    inputs, bound = forward_inputs(), bind_objective("mine", {"scale": 3.0})
    found = bound.group_figure(inputs)
    assert bound.grouped and not bind_objective("nft").grouped and not found.requires_grad
    assert torch.equal(found, _figure(inputs.velocity_BCHW, inputs.advantage_B, 3.0).detach())
    with pytest.raises(ValueError, match="'nft' has no figure of its group"):
        bind_objective("nft").group_figure(inputs)
    with pytest.raises(ValueError, match="'mine' needs group_mean_B, which is None"):
        bound(dataclasses.replace(inputs, group_mean_B=None))


@pytest.mark.parametrize(
    ("function", "group", "message"),
    [
        (_of_group, None, "takes group_mean_B exactly where it is registered with a group figure"),
        (_mine, _figure, "takes group_mean_B exactly where it is registered with a group figure"),
        (_of_group, lambda velocity, scale: None, r"velocity of its group figure is no input .* Did you mean"),
        (_of_group, lambda group_mean_B: None, "group_mean_B of its group figure is no input and no parameter"),
    ],
)
def test_a_wrong_figure_of_the_group_is_refused_at_registration(function, group, message) -> None:
    with pytest.raises(TypeError, match=message):
        register_objective("mine", group=group)(function)
    assert "mine" not in OBJECTIVES.names()


def test_an_averaged_figure_of_the_group_is_refused() -> None:
    register_objective("mine", group=lambda advantage_B: advantage_B.mean())(_of_group)
    with pytest.raises(ValueError, match=r"group figure must have shape \(8,\), got \(\)"):
        bind_objective("mine").group_figure(forward_inputs())


def test_what_a_choice_of_parameters_does_not_read_is_not_needed() -> None:
    old, base = (bind_objective("dgpo", {"reference": each}) for each in ("old", "base"))
    assert set(base.needs) - set(old.needs) == {"reference_velocity_BCHW"}
    without = dataclasses.replace(forward_inputs(), reference_velocity_BCHW=None)
    assert old(without).loss_B.isfinite().all()
    with pytest.raises(ValueError, match="'dgpo' needs reference_velocity_BCHW, which is None"):
        base(without)


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

    register_objective("mine")(mine)
    case = Transitions()
    with pytest.raises(error, match=message):
        bind_objective("mine")(case(case.old_velocity))
