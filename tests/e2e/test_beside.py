# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Second threads through the real command: the same run, number for number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import build_world, metrics, train

#: Of the eight pictures of a rank several batches.
SMALL = ["uae.train.micro_batch_size=2", "uae.decoder.batch_size=2"]
#: Metrics that tell of time, memory and load.
MEASURED = ("timing", "perf/", "seconds", "per_second", "memory", "/mfu", "decoder/restarts")


def numbers(out: Path) -> dict[int, dict[str, str]]:
    """Every metric that is no measurement, as its bits."""
    return {
        step: {name: float(value).hex() for name, value in record.items() if not any(word in name for word in MEASURED)}
        for step, record in metrics(out).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "switch", "overrides"),
    [
        ("uae_g4u", "uae.decoder.overlap=true", ["uae.decoder.batch_size=4"]),
        ("uae_u4g", "uae.decoder.overlap=true", ["trainer.n_gpus_per_node=2", *SMALL]),
        ("uae_pretrain", "uae.pretrain.prefetch=2", ["trainer.total_training_steps=4"]),
    ],
)
def test_a_second_thread_changes_no_number_of_a_run(
    tmp_path: Path, config: str, switch: str, overrides: list[str]
) -> None:
    world, found = build_world(tmp_path / "world"), []
    for name, words in (("off", overrides), ("on", [*overrides, switch])):
        result = train(world, tmp_path / name, ["trainer.test_freq=2", *words], config=config)
        assert result.returncode == 0, result.stdout[-3000:]
        found.append(numbers(tmp_path / name))
    assert len(found[0]) >= 2 and all(len(record) > 10 for record in found[0].values())
    assert found[0] == found[1]
