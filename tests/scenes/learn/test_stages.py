# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from verl_uae.scenes.learn import stages

KEYS = ("reward", "mse", "drawn", "words", "full_detail", "true", "scene_eval/loop", "scene_eval/draw")
REWARDS = {"start": 0.1, "pretrain": 0.4, "cold start": 0.45, "g4u": 0.6, "u4g": 0.7}


def results(lead: float = 0.05) -> list[stages.Result]:
    found = []
    for seed in (0, 1):
        for route in stages.ROUTES:
            for stage, reward in REWARDS.items():
                if route == "no cold start" and stage == "cold start":
                    continue
                behind = lead if route == "no cold start" and stage in ("g4u", "u4g") else 0.0
                metrics = {**dict.fromkeys(KEYS, 0.5), "reward": reward + 0.001 * seed - behind}
                found.append(stages.Result(route, seed, stage, metrics))
    return found


def test_every_stage_must_raise_the_reward_of_every_seed() -> None:
    same = {0: {"pixel_difference": 0.0}, 1: {"pixel_difference": 0.001}}
    assert [bar.met for bar in stages.verdicts(results(), same)] == [True] * 6
    assert [bar.met for bar in stages.verdicts(results(-0.05), {0: {"pixel_difference": 0.1}})][4:] == [False, False]


def test_each_seed_has_both_routes_from_one_pre_training(tmp_path: Path) -> None:
    runs = stages.plan(tmp_path, 3, 60)
    assert set(runs) == {"pretrain", "cold start"} | {f"{s}/{r}" for s in ("g4u", "u4g") for r in stages.ROUTES}
    drawn = f"uae.decoder.path={runs['pretrain'].checkpoint}/decoder"
    assert drawn in runs["cold start"].overrides and drawn in runs["g4u/no cold start"].overrides
    assert f"uae.conditioner.path={runs['cold start'].checkpoint}/encoder" in runs["u4g/cold start"].overrides
    assert len({run.folder for run in runs.values()}) == len(runs)


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    rows = stages.table(results()).splitlines()
    assert len(rows) == 2 + 5 + 4 and rows[2].startswith("| cold start | start | 0.101 ± 0.001 |")
    stages.write_results(tmp_path, results(), {0: {"pixel_difference": 0.0}})
    assert (tmp_path / "stages.png").stat().st_size > 1000 and '"stage": "u4g"' in (
        tmp_path / "stages.json"
    ).read_text()
