# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from verl_uae.scenes.learn import unified

KEYS = ("reward", "mse", "drawn", "words", "full_detail", "scene_eval/loop", "scene_eval/draw")


def results(**rewards: float) -> list[unified.Result]:
    found = []
    for seed in (0, 1):
        for variant in unified.VARIANTS:
            after = {**dict.fromkeys(KEYS, 0.5), "reward": rewards[variant] + 0.001 * seed}
            curve = [{"step": 1, "reward": 0.5, "seconds": 2.0}, {"step": 2, "reward": 0.6, "seconds": 3.0}]
            found.append(unified.Result(variant, seed, dict.fromkeys(KEYS, 0.4), after, curve, 9.0))
    return found


def test_taking_turns_must_beat_each_stage_alone() -> None:
    both = unified.verdicts(results(g4u=0.7, u4g=0.5, unified=0.8))
    assert [bar.met for bar in both] == [True, True]
    assert "smallest lead +0.100" in both[0].figure
    assert [bar.met for bar in unified.verdicts(results(g4u=0.7, u4g=0.5, unified=0.6))] == [False, True]


def test_the_table_counts_the_seconds_of_the_steps() -> None:
    rows = unified.table(results(g4u=0.7, u4g=0.5, unified=0.8)).splitlines()
    assert rows[2].startswith("| before | 0.400 ± 0.000 |")
    assert rows[-1].startswith("| `uae_unified` |") and rows[-1].endswith("| 5 |")


def test_curves_and_figures_are_written(tmp_path: Path) -> None:
    unified.write_results(tmp_path, results(g4u=0.7, u4g=0.5, unified=0.8), 60)
    assert (tmp_path / "unified_curves.png").stat().st_size > 1000
    assert '"variant": "unified"' in (tmp_path / "unified.json").read_text()
