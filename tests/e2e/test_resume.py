# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""kill -9 at a random moment, then the same command: the metrics of an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.e2e.world import build_world, environment, metrics, train, train_command

STEPS = 5
OVERRIDES = [
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=1",
    "trainer.resume_mode=auto",
    "trainer.max_actor_ckpt_to_keep=1",
    # The unified run changes its stage between steps 2 and 3, and 4 and 5.
    "uae.unified.g4u_steps=2",
    "uae.unified.u4g_steps=2",
]
#: Metrics that a resumed run has to repeat bit for bit, where a step has them.
COMPARED = (
    "train/loss",
    "train/grad_norm",
    "train/k/mean",
    "train/ratio/max",
    "train/window_start",
    "train/loss/mean",
    "train/velocity_rms/mean",
    "train/sigma/mean",
    "train/cosine/mean",
    "train/caption_negative_log_prob/mean",
    "train/captioner_grad_norm",
    "pairs/invalid_frac",
    "actor/loss",
    "actor/pg_loss",
    "actor/kl_loss",
    "actor/grad_norm",
    "actor/entropy",
    "reward/score/mean",
    "reward/score/std",
    "drawing/score/mean",
    "drawing/score/std",
    "critic/advantages/max",
    "response_length/mean",
    "conditioner/state_drift",
    "conditioner/syncs",
)


def _hex(record: dict) -> dict[str, str]:
    return {name: float(record[name]).hex() for name in COMPARED if name in record}


def _run_and_kill(world: Path, out: Path, after_step: int, delay: float, config: str, overrides: Sequence[str]) -> None:
    """Start the command, wait until ``after_step`` was logged, then kill every process of it."""
    with open(out / "log_killed.txt", "w") as log:
        process = subprocess.Popen(
            train_command(world, out, overrides, config),
            env=environment(out),
            cwd=out,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() or after_step not in metrics(out):
        assert process.poll() is None, (out / "log_killed.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # A run that is over cannot be resumed, however fast the machine.
    late = time.monotonic() + delay
    while time.monotonic() < late and STEPS - 1 not in metrics(out):
        time.sleep(0.02)
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "choices"),
    [
        ("uae_pretrain", []),
        ("uae_pretrain", ["uae.pretrain.prefetch=2"]),
        ("uae_cold_start", []),
        ("uae_g4u", []),
        ("uae_g4u", ["captioner/training=lora"]),
        ("uae_g4u", ["uae.conditioner.weights=synced"]),
        ("uae_u4g", []),
        ("uae_u4g", ["uae.u4g.pool.size=8", "uae.u4g.pool.steps=2", "uae.u4g.pool.choose=random"]),
        ("uae_u4g", ["uae.u4g.pool.size=6", "uae.u4g.ties=refill", "uae.u4g.advantage.min_std=0.009"]),
        ("uae_unified", []),
        ("uae_unified", ["uae.conditioner.weights=synced"]),
        ("uae_unified", ["uae.unified.schedule=joint"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_kill_and_resume_repeats_the_metrics_bit_for_bit(tmp_path: Path, config: str, choices: list[str]) -> None:
    world, overrides = build_world(tmp_path / "world"), [*choices, *OVERRIDES]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = train(world, whole, overrides, config=config)
    assert result.returncode == 0, result.stdout[-3000:]
    expected = metrics(whole)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert all(len(_hex(record)) >= 6 for record in expected.values())
    assert any(float(expected[1].get(f"{part}/grad_norm", 0.0)) > 0 for part in ("actor", "train"))

    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    broken.mkdir()
    after, delay = rng.randint(1, STEPS - 2), rng.uniform(0.0, 3.0 if config == "uae_g4u" else 0.4)
    _run_and_kill(world, broken, after, delay, config, overrides)
    before = metrics(broken)
    result = train(world, broken, overrides, config=config)
    assert result.returncode == 0, result.stdout[-3000:]
    after_resume = metrics(broken)
    context = f"seed {seed}, killed {delay:.2f} s after step {after}, resumed at {min(after_resume)}"
    assert 1 < min(after_resume) <= after + 3, context
    repeated = {**before, **after_resume}
    # verl saves a step before it logs it: the last one that is saved may have been killed between the two.
    assert set(expected) - set(repeated) <= {min(after_resume) - 1} and set(repeated) <= set(expected), context
    for step, record in repeated.items():
        assert _hex(record) == _hex(expected[step]), f"step {step}: {context}"
