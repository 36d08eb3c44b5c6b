# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""G4U and U4G in turns in one run."""

from __future__ import annotations

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
