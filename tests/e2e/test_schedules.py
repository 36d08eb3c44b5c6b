# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The same first step, whatever schedule and number of ranks carry it out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.world import build_world, metrics, train

ONE_STEP = ["trainer.total_training_steps=1"]
STREAMED = ["uae.decoder.schedule=streamed", "uae.decoder.pool=own", "uae.decoder.batch_size=4"]
TWO_RANKS = ["trainer.n_gpus_per_node=2"]


def _scores(out: Path) -> dict[str, float]:
    lines = (out / "rollouts" / "1.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["uid"]: record["score"] for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


def _run(world: Path, out: Path, overrides: list[str]) -> tuple[dict, dict[str, float]]:
    result = train(world, out, [*ONE_STEP, f"trainer.rollout_data_dir={out}/rollouts", *overrides])
    assert result.returncode == 0, result.stdout[-4000:]
    return metrics(out)[1], _scores(out)


@pytest.mark.slow
def test_streamed_and_two_ranks_give_the_numbers_of_phased_on_one_rank(world: Path, tmp_path: Path) -> None:
    phased, phased_scores = _run(world, tmp_path / "phased", [])
    assert len(phased_scores) == 16
    assert len(set(phased_scores.values())) > 8, "the rewards must differ for this test to mean something"
    for name, overrides in (("streamed", STREAMED), ("two_ranks", TWO_RANKS)):
        record, scores = _run(world, tmp_path / name, overrides)
        assert scores.keys() == phased_scores.keys(), name
        for uid, score in phased_scores.items():
            assert scores[uid] == pytest.approx(score, abs=1e-6), (name, uid)
        for metric in ("reward/score/mean", "reward/pixel/std", "actor/pg_loss", "caption/words/mean"):
            assert record[metric] == pytest.approx(phased[metric], abs=1e-5), (name, metric)
        assert record["actor/grad_norm"] == pytest.approx(phased["actor/grad_norm"], rel=1e-3), name
