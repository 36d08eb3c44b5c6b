# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Terms that compare the members of a group, through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import build_world, metrics, train

JUDGE = Path(__file__).parents[2] / "rewards" / "preference_pair.py"
TERMS = (
    "uae.reward.terms=[{name: pixel, weight: 1.0, normalize: rank, tie: 1.0e-6}, "
    f"{{name: preference, weight: 0.5, params: {{path: {JUDGE}}}}}]"
)
TWO_RANKS = ["trainer.n_gpus_per_node=2"]
STREAMED = ["uae.decoder.schedule=streamed", "uae.decoder.pool=own"]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "other"), [("uae_g4u", TWO_RANKS), ("uae_g4u", STREAMED), ("uae_u4g", TWO_RANKS)])
def test_groups_are_compared_whole_however_they_are_drawn(tmp_path: Path, config: str, other: list[str]) -> None:
    """Four members of each group lie on two ranks, or arrive one by one; the values are those of one rank."""
    world = build_world(tmp_path / "world")
    logged = {}
    for name, overrides in (("one", []), ("other", other)):
        sizes = ["uae.train.micro_batch_size=4"] if config == "uae_u4g" else []
        result = train(world, tmp_path / name, [TERMS, *sizes, *overrides], config=config)
        assert result.returncode == 0, result.stdout[-3000:]
        logged[name] = metrics(tmp_path / name)
    for step, record in logged["one"].items():
        # Both are shares of the other members: over whole groups their mean is one half.
        assert record["reward/preference/mean"] == pytest.approx(0.5, abs=1e-6)
        assert record["reward/score/mean"] == pytest.approx(0.75, abs=1e-6)
        assert record["reward/preference/std"] > 0.01
        for key in ("reward/preference/std", "reward/pixel/mean", "reward/score/std"):
            assert logged["other"][step][key] == pytest.approx(record[key], abs=1e-4), (step, key)
