# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What makes a step faster changes rounding and nothing else, through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import build_world, metrics, train

COMPILED = ["uae.decoder.compile=true"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["uae_u4g", "uae_g4u", "uae_pretrain", "uae_cold_start"])
def test_compiled_blocks_change_no_run(tmp_path: Path, config: str) -> None:
    world = build_world(tmp_path / "world")
    logged = {}
    for name, overrides in {"plain": [], "compiled": COMPILED}.items():
        result = train(world, tmp_path / name, overrides, config=config)
        assert result.returncode == 0, result.stdout[-3000:]
        logged[name] = metrics(tmp_path / name)
        assert ("blocks of" in result.stdout) == (name == "compiled")
    for step, record in logged["plain"].items():
        found = logged["compiled"][step]
        if config == "uae_u4g":
            assert found["train/first/ratio/min"] == found["train/first/ratio/max"] == 1.0
        compared = [key for key in record if key.endswith(("loss", "reward/score/mean", "cosine/mean"))]
        assert compared
        for key in compared:
            assert found[key] == pytest.approx(record[key], abs=1e-4), (step, key)
