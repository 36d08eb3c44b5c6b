# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from tests.samples import lost, scored
from verl_uae.chain.records import Outcome
from verl_uae.engines.update_metrics import update_metrics
from verl_uae.flow.advantage import group_advantage
from verl_uae.stages.common.outcomes import usable_members
from verl_uae.stages.u4g.step import PolicyMixin, kept_name


def test_metrics_of_updates_are_means_extremes_and_the_first_ones_ratio() -> None:
    updates = [
        {"loss": 1.0, "ratio/max": [1.0], "ratio/min": [[1.0]], "grad_norm": 2.0},
        {"loss": 3.0, "ratio/max": [1.5], "ratio/min": [[0.5]], "grad_norm": 4.0},
    ]
    assert update_metrics(updates) == pytest.approx(
        {
            "train/loss": 2.0,
            "train/grad_norm": 3.0,
            "train/ratio/max": 1.5,
            "train/ratio/min": 0.5,
            "train/first/ratio/max": 1.0,
            "train/first/ratio/min": 1.0,
            "train/updates_left_out": 0,
        }
    )


def test_updates_left_out_are_counted_and_no_figure_is_a_mean_over_them() -> None:
    updates = [
        {"updates_left_out": [[1.0], [1.0]], "valid": [0.0]},
        {"updates_left_out": [[0.0], [0.0]], "valid": [8.0], "loss": 3.0, "grad_norm": 4.0},
        {"updates_left_out": [[1.0], [1.0]], "valid": [0.0]},
    ]
    found = update_metrics(updates)
    assert found["train/updates_left_out"] == 2
    assert (found["train/loss"], found["train/grad_norm"]) == (3.0, 4.0)


def outcomes(*values: float | None) -> list[Outcome]:
    return [lost() if value is None else scored(value) for value in values]


@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_advantages_compare_the_valid_members_of_a_caption(compose, tiny_overrides: list[str], std: str) -> None:
    mixin = object.__new__(PolicyMixin)
    mixin.config = compose(*tiny_overrides, f"uae.u4g.advantage.std={std}", name="uae_u4g")
    found = outcomes(0.0, 0.5, None, 0.1, 0.3, 0.8, 0.9, None, None)
    groups = ["a", "a", "a", "b", "b", "b", "c", "c", "c"]
    usable = usable_members(found, groups)
    assert usable == [True, True, False, True, True, True, False, False, False]
    advantage, metrics = mixin._advantages(found, usable, groups)
    reward = torch.tensor([0.0, 0.5, math.nan, 0.1, 0.3, 0.8, 0.9, math.nan, math.nan])
    expected, _ = group_advantage(reward, torch.tensor(usable), groups, std=std, min_std=1e-4)
    assert torch.equal(advantage, expected) and torch.equal(advantage == 0, ~torch.tensor(usable))
    assert metrics["train/advantage/abs_max"] == pytest.approx(float(expected.abs().max()))
    assert metrics["train/advantage/clamped_frac"] == 0.0


def test_clamped_advantages_are_counted_before_the_clamp(compose, tiny_overrides: list[str]) -> None:
    mixin = object.__new__(PolicyMixin)
    mixin.config = compose(*tiny_overrides, "uae.u4g.advantage.clamp=0.5", name="uae_u4g")
    advantage, metrics = mixin._advantages(outcomes(0.0, 0.5, 0.5, 1.0), [True] * 4, ["a"] * 4)
    assert advantage.tolist() == [-0.5, 0.0, 0.0, 0.5]
    assert metrics["train/advantage/clamped_frac"] == 0.5 and metrics["train/advantage/abs_max"] > 1.0


def prompt(*colours: str) -> list[dict]:
    pictures = [{"type": "image", "image": Image.new("RGB", (8, 8), colour)} for colour in colours]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": "describe"}]}]


def test_a_caption_is_kept_under_what_the_picture_shows() -> None:
    """Not under the object that holds it: a later one may have its address."""
    assert kept_name(prompt("red"), {}) == kept_name(prompt("red"), {}) != kept_name(prompt("blue"), {})
    assert kept_name(prompt("red"), {"sha256": "abc"})[0] == ("abc",)
    assert kept_name([{"role": "user", "content": "no picture"}], {}) is None
    assert kept_name(prompt("red", "blue"), {}) != kept_name(prompt("red", "green"), {}), "all that it shows"
