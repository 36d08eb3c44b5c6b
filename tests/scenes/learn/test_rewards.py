# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.evaluate import Evaluation, held_out_scenes
from verl_uae.scenes.learn import rewards
from verl_uae.scenes.render import render_float


def results(**gains: tuple[float, float]) -> list[rewards.Result]:
    before = dict.fromkeys(rewards.COLUMNS, 0.3)
    curve = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.6}]
    return [
        rewards.Result(name, seed, before, {**before, "drawn": 0.3 + gain}, curve, 9.0)
        for name in rewards.REWARDS
        for seed, gain in enumerate(gains[name])
    ]


def test_the_best_reward_is_named_and_must_lead_beyond_seeds() -> None:
    clear = rewards.verdicts(
        results(pixel=(0.40, 0.41), ssim=(0.50, 0.51), efficientnet_lite0=(0.30, 0.31), pooled=(0.20, 0.21))
    )
    assert [bar.met for bar in clear] == [True] * 5
    assert clear[-1].claim == "ssim buys more attributes than pixel, beyond seeds"
    assert clear[-1].figure.startswith("mean gain +0.100")
    # The same means, but the lead comes from one seed.
    close = rewards.verdicts(
        results(pixel=(0.40, 0.41), ssim=(0.39, 0.62), efficientnet_lite0=(0.0, 0.0), pooled=(0.1, 0.1))
    )
    assert [bar.met for bar in close] == [True, True, False, True, False]


def test_one_term_is_rewarded_and_the_others_are_held_out() -> None:
    override = OverridesParser.create().parse_override(rewards.terms("ssim"))
    found = {entry["name"]: entry for entry in override.value()}
    assert set(found) == set(rewards.WATCHED)
    assert [name for name, entry in found.items() if entry.get("held_out")] == ["pixel", "efficientnet_lite0"]
    assert found["ssim"]["weight"] == 1.0 and found["efficientnet_lite0"]["params"] == {"image_size": 64}
    pooled = OverridesParser.create().parse_override(rewards.terms("pooled")).value()
    assert [entry.get("held_out", False) for entry in pooled] == [True, True, True, False]
    assert pooled[-1] == {
        "name": "efficientnet_lite0",
        "label": "pooled",
        "weight": 1.0,
        "params": {"image_size": 64, "mode": "pooled"},
    }


def test_term_means_are_those_of_the_terms() -> None:
    scenes = held_out_scenes(6, 0)
    images = render_float(scenes)
    drawings = images.roll(1, 0)
    means = rewards.term_means(Evaluation({}, scenes, [""] * 6, images, drawings))
    assert set(means) == {f"term/{name}" for name in rewards.WATCHED}
    assert means["term/pixel"] == pytest.approx(float(pixel_similarity(drawings, images).mean()), abs=1e-6)
    assert all(torch.isfinite(torch.tensor(list(means.values()))))


def test_figures_and_curves_are_written(tmp_path: Path) -> None:
    found = results(pixel=(0.40, 0.41), ssim=(0.50, 0.51), efficientnet_lite0=(0.30, 0.31), pooled=(0.20, 0.21))
    rewards.write_results(tmp_path, found, 60, {0: {"pixel": 0.7}})
    content = json.loads((tmp_path / "rewards.json").read_text())
    assert content["orders"] == {"0": {"pixel": 0.7}}
    assert content["runs"][0]["reward"] == "pixel" and len(content["bars"]) == 5
    assert (tmp_path / "rewards_curves.png").stat().st_size > 1000
    rows = rewards.table(found).splitlines()
    assert rows[2].startswith("| before | 0.300 |") and rows[3].startswith("| `pixel` | 0.705 (+0.405 ± 0.007) |")
