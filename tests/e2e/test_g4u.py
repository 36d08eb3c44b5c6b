# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The user's command, two steps long, with everything it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import build_world, metrics, train
from verl_uae.checkpoints.step import complete_steps


def test_two_steps_with_validation_panel_and_checkpoint(tmp_path: Path) -> None:
    world = build_world(tmp_path / "world")
    out = tmp_path / "run"
    result = train(
        world,
        out,
        ["trainer.test_freq=2", "trainer.save_freq=2", "uae.panel.probes=3", "trainer.val_before_train=true"],
    )
    assert result.returncode == 0, result.stdout[-4000:]
    record = metrics(out)
    assert sorted(record) == [0, 1, 2]
    for step in (1, 2):
        data = record[step]
        assert float(data["actor/grad_norm"]) > 0
        assert data["reward/groups"] == 4
        assert data["reward/invalid_frac"] == 0
        # One update per rollout: the trainer's probabilities are the server's, so the ratio starts at 1.
        assert data["training/rollout_probs_diff_max"] < 1e-4
        assert data["training/rollout_actor_probs_pearson_corr"] > 0.9999
        expected = 0.7 * data["reward/pixel/mean"] + 0.3 * data["reward/ssim/mean"]
        assert data["reward/score/mean"] == pytest.approx(expected, abs=1e-6)
        assert data["critic/score/mean"] == pytest.approx(data["reward/score/mean"], abs=1e-5)
        assert 0 <= data["perf/overhead_frac"] < 1
        for phase in ("caption", "decode", "score", "update_actor"):
            assert data[f"timing_s/{phase}"] > 0, phase
    assert record[0]["val-aux/uae/invalid_frac"] == 0
    assert "val-core/uae_scenes/reward/mean@1" in record[2]
    panels = out / "checkpoints" / "panels"
    names = [f"step_{step:06d}.{kind}" for step in (0, 2) for kind in ("html", "png")]
    assert sorted(path.name for path in panels.iterdir()) == names
    assert (panels / "step_000002.html").read_text(encoding="utf-8").count('<section class="card">') == 3
    assert complete_steps(out / "checkpoints") == [2]
    assert (out / "checkpoints" / "global_step_2" / "actor" / "huggingface" / "config.json").is_file()
