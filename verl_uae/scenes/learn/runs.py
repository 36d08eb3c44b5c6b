# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cold starts and training commands of learning runs, several at a time, and what they logged."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from verl_uae.formats.names import step_name
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say, Timings, command, prepare

#: Metrics of the curves: name in the results -> name in verl's log.
CURVE = {
    "reward": "reward/score/mean",
    "words": "caption/words/mean",
    "seconds": "timing_s/step",
    "stage": "unified/stage",
    "grad_norm": "policy/grad_norm",
    "divergence": "policy/k/mean",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training command."""

    name: str
    config: str
    """Hydra config, such as uae_u4g."""
    root: Path
    """Folder of the cold start and the data."""
    folder: Path
    """Checkpoints, metrics and log."""
    seed: int
    steps: int
    overrides: tuple[str, ...] = field(default=())
    preset: str = "scenes"

    @property
    def checkpoint(self) -> Path:
        """What the run saves at its end."""
        return self.folder / step_name(self.steps)


def cold_starts(starts: Mapping[Path, JointConfig], jobs: int, say: Say) -> None:
    """Models and data of every folder, ``jobs`` at a time, unless they are there."""
    say(f"{len(starts)} cold starts, {jobs} at a time")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for folder in pool.map(_cold_start, starts.items()):
            say(f"cold start: {folder}")


def _cold_start(start: tuple[Path, JointConfig]) -> Path:
    torch.set_num_threads(1)
    folder, config = start
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, config.seed, Timings(), lambda _: None, config)
    return folder


def execute(runs: Sequence[Run], jobs: int, say: Say) -> dict[str, float]:
    """Run commands, ``jobs`` at a time; one that has finished with the same words is not run again.

    Returns:
        Seconds of wall clock by name of the run.

    Raises:
        SystemExit: one failed, naming its log.
    """
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        seconds = list(pool.map(lambda run: _execute(run, say), runs))
    return dict(zip((run.name for run in runs), seconds, strict=True))


def _execute(run: Run, say: Say) -> float:
    run.folder.mkdir(parents=True, exist_ok=True)
    words = command(
        run.root,
        run.folder,
        seed=run.seed,
        steps=run.steps,
        overrides=run.overrides,
        config=run.config,
        preset=run.preset,
    )
    stamp = run.folder / "finished.json"
    if stamp.is_file() and (before := json.loads(stamp.read_text(encoding="utf-8")))["command"] == words[1:]:
        say(f"{run.name}: there already")
        return before["seconds"]
    metrics = run.folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with open(run.folder / "train.log", "w", encoding="utf-8") as log:
        code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code != 0:
        raise SystemExit(f"{run.name}: exit code {code}, see {run.folder / 'train.log'}")
    seconds = round(time.perf_counter() - started, 1)
    stamp.write_text(json.dumps({"command": words[1:], "seconds": seconds}) + "\n", encoding="utf-8")
    say(f"{run.name}: {run.steps} steps of {run.config} in {seconds:.0f} s")
    return seconds


def read_curve(metrics: Path, names: Mapping[str, str] = CURVE) -> list[dict[str, float]]:
    """Training curve from verl's file logger: per step the metrics it has."""
    curve = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found = {name: record["data"][key] for name, key in names.items() if key in record["data"]}
        if "reward" in found:
            curve.append({"step": record["step"], **found})
    return curve
