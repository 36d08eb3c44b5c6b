# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""G4U and U4G in one run, in turns and jointly."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.world import build_world, metrics, train

TURNS = ["uae.unified.g4u_steps=1", "uae.unified.u4g_steps=1", "trainer.total_training_steps=3"]


@pytest.mark.slow
def test_both_learn_and_the_new_decoder_reaches_the_captioners_reward(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world")
    logged = {}
    for name, lr in (("moving", 1e-2), ("still", 0.0)):
        result = train(world, tmp_path / name, [*TURNS, f"uae.train.optim.lr={lr}"], config="uae_unified")
        assert result.returncode == 0, result.stdout[-3000:]
        logged[name] = metrics(tmp_path / name)
    moving, still = logged["moving"], logged["still"]
    assert [moving[step]["unified/stage"] for step in (1, 2, 3)] == [0.0, 1.0, 0.0]
    assert moving[1]["actor/grad_norm"] > 0 and moving[2]["train/grad_norm"] > 0
    # Up to the decoder's update the runs are one; after it the same captions are redrawn by another decoder.
    assert moving[1]["reward/score/mean"] == still[1]["reward/score/mean"]
    assert moving[2]["reward/score/mean"] == still[2]["reward/score/mean"]
    assert moving[3]["caption/words/mean"] == still[3]["caption/words/mean"]
    assert moving[3]["reward/score/mean"] != still[3]["reward/score/mean"]


def advantages(rewards: Sequence[float]) -> list[float]:
    """GRPO's of one group."""
    return [(reward - statistics.mean(rewards)) / (statistics.stdev(rewards) + 1e-6) for reward in rewards]


@pytest.mark.slow
def test_one_batch_of_drawings_rewards_the_captions_and_trains_the_decoder(tmp_path: Path) -> None:
    """4 pictures, 4 captions of each, 4 drawings of each caption, and every drawing in the file of the step."""
    world = build_world(tmp_path / "world")
    joint = ["uae.unified.schedule=joint", "uae.reward.min_std=0", "trainer.test_freq=1"]
    logged, drawn = {}, {}
    for name, lr in (("moving", 1e-2), ("still", 0.0)):
        out = tmp_path / name
        options = [*joint, f"uae.train.optim.lr={lr}", f"trainer.rollout_data_dir={out}/drawn"]
        result = train(world, out, options, config="uae_unified")
        assert result.returncode == 0, result.stdout[-3000:]
        logged[name] = metrics(out)
        lines = [(out / "drawn" / f"{step}.jsonl").read_text("utf-8").splitlines() for step in (1, 2)]
        drawn[name] = [[json.loads(line) for line in step] for step in lines]
    moving, still = logged["moving"], logged["still"]
    for step, rows in enumerate(drawn["moving"], start=1):
        found, scores = moving[step], [row["score"] for row in rows]
        assert len(rows) == 4 * 4 * 4 and [row["member"] for row in rows] == [0, 1, 2, 3] * 16
        assert all(len({row["output"] for row in rows[first : first + 4]}) == 1 for first in range(0, 64, 4))
        assert all(len({row["digest"] for row in rows[first : first + 16]}) == 1 for first in range(0, 64, 16))
        captions = [statistics.mean(scores[first : first + 4]) for first in range(0, 64, 4)]
        assert found["unified/stage"] == 2.0 and "decoder/restarts" not in found
        assert found["drawing/score/std"] == pytest.approx(statistics.pstdev(scores), abs=1e-6)
        assert found["reward/score/std"] == pytest.approx(statistics.pstdev(captions), abs=1e-6)
        assert (found["reward/groups"], found["drawing/groups"]) == (4, 16)
        of_captions = [value for first in range(0, 16, 4) for value in advantages(captions[first : first + 4])]
        assert found["critic/advantages/max"] == pytest.approx(max(of_captions), rel=1e-3)
        assert found["critic/advantages/min"] == pytest.approx(min(of_captions), rel=1e-3)
        assert found["actor/grad_norm"] > 0 and found["train/grad_norm"] > 0
        assert found["train/first/ratio/min"] == found["train/first/ratio/max"] == 1.0
    # What the decoder learns reaches neither this step's captioner nor its captions, but the next step's pictures.
    assert drawn["moving"][0] == drawn["still"][0] and moving[1]["actor/grad_norm"] == still[1]["actor/grad_norm"]
    texts = [[row["output"] for row in found[1]] for found in drawn.values()]
    assert texts[0] == texts[1] and moving[2]["reward/score/mean"] != still[2]["reward/score/mean"]
    # Validation is by the averaged weights of the same ranks.
    value = "val-core/uae_scenes/reward/mean@1"
    assert moving[1][value] != still[1][value]
