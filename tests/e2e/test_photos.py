# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The same chain on real photographs: the pictures inside the scikit-image wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.world import build_world, environment, metrics, train


@pytest.mark.slow
def test_two_training_steps_on_photographs(tmp_path: Path) -> None:
    skimage = pytest.importorskip("skimage")
    folder = Path(skimage.__file__).parent / "data"
    packed = tmp_path / "packed"
    pack = subprocess.run(
        [
            sys.executable,
            "-m",
            "verl_uae.cli",
            "data",
            "pack",
            str(folder),
            "--out",
            str(packed),
            "--val-fraction",
            "0.2",
        ],
        capture_output=True,
        text=True,
        env=environment(tmp_path / "pack"),
        check=False,
    )
    assert pack.returncode == 0, pack.stdout + pack.stderr
    world = build_world(tmp_path / "world")
    out = tmp_path / "run"
    result = train(
        world,
        out,
        [
            f"data.train_files={packed}/train.parquet",
            f"data.val_files={packed}/val.parquet",
            "data.max_prompt_length=512",
            "uae.panel.probes=4",
            "trainer.test_freq=2",
            "uae.reward.terms=[{name: efficientnet_lite0, params: {image_size: 64}}, {name: pixel, weight: 0.5}]",
        ],
    )
    assert result.returncode == 0, result.stdout[-4000:]
    record = metrics(out)
    for step in (1, 2):
        assert record[step]["reward/invalid_frac"] == 0.0
        assert -1 <= record[step]["reward/efficientnet_lite0/mean"] <= 1
        assert float(record[step]["actor/grad_norm"]) > 0
    panel = (out / "checkpoints" / "panels" / "step_000002.html").read_text(encoding="utf-8")
    assert panel.count('<section class="card">') == 4
