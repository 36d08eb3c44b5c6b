# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Objectives at as many drawn pictures: what is run, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning import objectives
from benchmarks.learning import statistics as s
from benchmarks.learning.u4g import PRESETS, STEEPNESS
from verl_uae.estimate.report import step_pictures

OBJECTIVES, RATES = objectives.Objectives(), objectives.Rates()


@pytest.mark.parametrize("arm", OBJECTIVES.arms)
def test_every_arm_is_a_valid_command_that_draws_as_many_pictures(
    arm: str, compose: Callable[..., Any], tiny_models: Path, tmp_path: Path
) -> None:
    from verl_uae.config.validate import validate

    preset, _, way = arm.partition("+")
    (tmp_path / f"seed7_{objectives.START}").symlink_to(tiny_models)
    run = objectives.planned(tmp_path, arm, "5e-4", 7, 60)
    config = compose(*run.words[run.words.index(run.config) + 1 :], name=run.config)
    validate(config)
    assert (
        config.uae.u4g.objective.name == compose(f"decoder/objective={preset}", name="uae_u4g").uae.u4g.objective.name
    )
    assert config.uae.train.optim.lr == 5e-4 and config.uae.u4g.guidance == config.uae.decoder.guidance == 1.0
    assert [(term.name, term.params.k) for term in config.uae.reward.terms] == [("pixel", STEEPNESS)]
    assert step_pictures(config, "u4g") * run.steps == 64 * 60 and config.trainer.total_training_steps == run.steps
    assert (config.uae.u4g.pool.size is not None) == (way == "pool")
    assert (config.uae.u4g.objective.norm_guard > 0) == (way == "guard")


def test_arms_and_rates_are_of_all_presets_and_no_seed_is_tuned_on_and_reported() -> None:
    assert len(OBJECTIVES.arms) == 2 * len(PRESETS) + len(objectives.FORWARD)
    assert len(RATES.arms) == len(objectives.RATES) * len(PRESETS) and set(objectives.CHOSEN) == set(PRESETS)
    assert set(objectives.CHOSEN.values()) <= set(objectives.RATES)
    assert not set(OBJECTIVES.seeds) & set(RATES.seeds)


def row(arm: str, seed: int, reward: float) -> dict[str, Any]:
    figures = dict.fromkeys(objectives.COLUMNS, 0.5)
    return {
        "preset": arm.split("+")[0].split("@")[0],
        "arm": arm,
        "seed": seed,
        "before": figures,
        "after": {**figures, "reward": reward},
        "curve": [{"step": 1, "reward": reward, "seconds": 2.0}],
        "cost": {"u4g": {"pictures": 64.0, "flops": 3e12}},
    }


def test_a_lead_is_paired_and_its_interval_is_of_all_comparisons_at_once() -> None:
    values = {"dppo": (0.6, 0.7, 0.8), "nft": (0.62, 0.71, 0.83), "nft+pool": (0.6, 0.7, 0.4)}
    rows = [row(arm, seed, found) for arm, each in values.items() for seed, found in enumerate(each)]
    report = {"rates": objectives.CHOSEN, "runs": rows}
    lines = OBJECTIVES.table(report)
    low, high = s.t_interval([0.02, 0.01, 0.03], 2)
    (lead,) = (line for line in lines if line.startswith("| `nft` | +"))
    assert f"+0.020 ({low:+.3f} to {high:+.3f})" in lead
    assert any("| `nft` | 2e-4 | 0.720" in line and line.endswith("| 64 | 3.0 | 2 |") for line in lines)
    met = {bar.claim.split(":")[0]: bar.met for bar in OBJECTIVES.bars(report)}
    assert met == {"dppo": True, "nft": True, "nft+pool": False}


def test_the_best_rate_is_named() -> None:
    rewards = {"2e-4": 0.5, "5e-4": 0.9, "1e-3": 0.7}
    lines = RATES.table({"runs": [row(f"awm@{rate}", 0, found) for rate, found in rewards.items()]})
    assert lines[-1] == "| `awm` | 0.500 | 0.900 | 0.700 | 5e-4 |"
