# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A run that keeps one checkpoint has a complete one at every moment, also in the middle of saving the next."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.e2e.world import build_world, environment, train_command
from verl_uae.checkpoints.step import complete_steps, step_folders

logger = logging.getLogger(__name__)

#: Moments inside a save to look at.
MOMENTS = 40

#: Longest random wait after a save was seen to go on, seconds.
LONGEST_WAIT = 0.25

OVERRIDES = [
    "trainer.total_training_steps=400",
    "trainer.total_epochs=100",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=1",
    "trainer.resume_mode=auto",
    # The unified run changes its stage at every step.
    "uae.unified.g4u_steps=1",
    "uae.unified.u4g_steps=1",
]


def family(process: subprocess.Popen) -> list[psutil.Process]:
    if process.poll() is not None:
        return []
    return [parent := psutil.Process(process.pid), *parent.children(recursive=True)]


def signal_all(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue


def is_saving(root: Path) -> bool:
    """Whether the newest step folder is not complete yet, or an older one not gone yet."""
    folders = [step for step, _ in step_folders(root)]
    return len(folders) > 1 or folders != complete_steps(root)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["uae_g4u", "uae_unified", "uae_u4g", "uae_pretrain", "uae_cold_start"])
def test_frozen_inside_a_save_there_is_a_complete_step(tmp_path: Path, config: str) -> None:
    """What a stopped process tree has on disk is what kill -9 at that moment leaves."""
    world, out = build_world(tmp_path / "world"), tmp_path / "run"
    root = out / "checkpoints"
    root.mkdir(parents=True)
    rng, seen, newest = random.Random(config), 0, 0
    with open(tmp_path / "log.txt", "w") as log:
        environ, command = environment(out), train_command(world, out, OVERRIDES, config)
        process = subprocess.Popen(command, env=environ, cwd=out, stdout=log, stderr=subprocess.STDOUT)
    try:
        while not complete_steps(root):
            assert process.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(0.1)
        while seen < MOMENTS:
            assert process.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
            if not is_saving(root):
                time.sleep(0.002)
                continue
            time.sleep(rng.uniform(0.0, LONGEST_WAIT))
            frozen = family(process)
            signal_all(frozen, signal.SIGSTOP)
            inside, complete = is_saving(root), complete_steps(root)
            found = {folder.name: sorted(path.name for path in folder.rglob("*")) for _, folder in step_folders(root)}
            signal_all(frozen, signal.SIGCONT)
            seen += inside
            assert complete, f"moment {seen}: no complete step in {found}"
            assert complete[-1] >= newest, f"moment {seen}: step {newest} was complete, now {complete}"
            newest = complete[-1]
    finally:
        signal_all(family(process), signal.SIGKILL)
        process.wait()
    logger.info("%s: a complete step at each of %d moments inside saves up to step %d", config, seen, newest)
