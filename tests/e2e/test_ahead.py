# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions one step ahead: whose weights write them, and what a resumed run makes of it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.world import Started, build_world, repeatable, train
from verl_uae.checkpoints.step import complete_steps

pytestmark = pytest.mark.slow

#: Own decoders, and steps that move the captioner far enough to change what it writes.
COMMON = ["uae.decoder.pool=own", "trainer.total_training_steps=5", "trainer.save_freq=3", "trainer.resume_mode=auto"]
AHEAD = ["uae.g4u.ahead=1", "algorithm.rollout_correction.rollout_is=token"]
MOVING, STILL = "actor_rollout_ref.actor.optim.lr=0.01", "actor_rollout_ref.actor.optim.lr=0"

#: What the captions of a step and their pictures decide alone.
WRITTEN = ("reward/score/mean", "reward/score/std", "reward/pixel/mean", "caption/words/mean", "response_length/mean")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ahead(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return _run(world, tmp_path_factory.mktemp("ahead"), [*COMMON, *AHEAD, MOVING])


def _run(world: Path, out: Path, overrides: list[str]) -> dict[int, Any]:
    result = train(world, out, overrides)
    assert result.returncode == 0, result.stdout[-4000:]
    return repeatable(out)


def test_captions_come_from_the_weights_before_the_update(world: Path, ahead: dict[int, Any], tmp_path: Path) -> None:
    """Of a captioner that stands still, all captions come from the first weights: so do those of steps 1 and 2 of a run
    that writes ahead, and no later ones. Step 3 is saved, so step 4 waits for its update."""
    still = _run(world, tmp_path / "still", [*COMMON, STILL])
    moving = _run(world, tmp_path / "moving", [*COMMON, MOVING])
    same = [step for step in still if all(ahead[step][name] == still[step][name] for name in WRITTEN)]
    assert same == [1, 2]
    assert [step for step in still if all(moving[step][name] == still[step][name] for name in WRITTEN)] == [1]
    stale = "training/off_policy/trajectory_staleness/max"
    assert [ahead[step][stale] for step in sorted(ahead)] == [0, 1, 1, 0, 1]
    assert all(record[stale] == 0 for record in moving.values())
    # On policy the server's log-probabilities are the trainer's; one step off they are not, and verl weighs them.
    kl = [abs(ahead[step]["rollout_corr/k3_kl"]) for step in sorted(ahead)]
    assert max(kl[0], kl[3]) < 1e-6 < 1e-4 < min(kl[1], kl[2], kl[4])
    deviation = [ahead[step]["rollout_corr/rollout_is_std"] for step in sorted(ahead)]
    assert max(deviation[0], deviation[3]) < 1e-3 < min(deviation[1], deviation[2], deviation[4])


def test_a_resumed_run_repeats_the_numbers(world: Path, ahead: dict[int, Any], tmp_path: Path) -> None:
    overrides = [*COMMON, *AHEAD, MOVING, "actor_rollout_ref.actor.optim.total_training_steps=5"]
    out = tmp_path / "broken"
    begun = _run(world, out, [*overrides, "trainer.total_training_steps=3"])
    resumed = _run(world, out, overrides)
    assert sorted(resumed) == [4, 5]
    assert {**begun, **resumed} == ahead


def test_a_stopped_run_goes_on_with_the_captions_that_were_on_their_way(world: Path, tmp_path: Path) -> None:
    """They were fetched, and nothing has learnt of them: the place in the data is before them."""
    out = tmp_path / "stopped"
    out.mkdir()
    run = Started(world, out, ["uae.decoder.pool=own", *AHEAD])
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGTERM)
    code, line = run.end()
    (step,) = complete_steps(out / "checkpoints")
    assert code == 128 + signal.SIGTERM and f"step {step} is saved" in line
    state = torch.load(out / "checkpoints" / f"global_step_{step}" / "data.pt", weights_only=False)
    # Eight batches of four are an epoch.
    assert state["_num_yielded"] % 8 == step % 8
