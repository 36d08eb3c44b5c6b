# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models and training commands of learning runs, several at a time, and what they logged."""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning import costs
from benchmarks.learning.statistics import Row
from verl_uae.checkpoints.names import CAPTIONER, EXPORT_FOLDER, step_name
from verl_uae.files import write_json
from verl_uae.scenes.joint_training import JointConfig, World
from verl_uae.scenes.quickstart import (
    METRICS,
    Say,
    Timings,
    command,
    prepare,
    run_training,
    train_once,
    trained_captioner,
)
from verl_uae.settings import CAPTIONING, EXPLORING

#: Nothing is validated in a run: held-out figures are measured before and after it.
QUIET = ("trainer.test_freq=-1", "trainer.val_before_train=false")

#: In the folder of a run: its command and seconds, once it has ended; what was measured of it.
FINISHED, RESULT = "finished.json", "result.json"

#: Metrics of the curves: name in the results -> name in verl's log.
CURVE = {
    "reward": "reward/score/mean",
    "words": "caption/words/mean",
    "seconds": "timing_s/step",
    "stage": "unified/stage",
    "grad_norm": "train/grad_norm",
    "divergence": "train/k/mean",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training command."""

    labels: Mapping[str, str]
    """What tells it from the other runs of its seed, as in its row of the report."""
    config: str
    """Hydra config, such as uae_u4g."""
    root: Path
    """Folder of the tiny models and the data."""
    folder: Path
    """Checkpoints, metrics and log."""
    seed: int
    steps: int
    overrides: tuple[str, ...] = field(default=())
    preset: str = "scenes"

    @property
    def name(self) -> str:
        """Labels and seed."""
        return "/".join([*self.labels.values(), f"seed{self.seed}"])

    @property
    def words(self) -> list[str]:
        """Of the training command behind its program."""
        how = {"seed": self.seed, "steps": self.steps, "config": self.config, "preset": self.preset}
        return command(self.root, self.folder, overrides=self.overrides, **how)[1:]

    def costs(self) -> dict[str, dict[str, float]]:
        """Of its steps, see `costs.of_steps`; the models it starts from must be there."""
        words = self.words
        return costs.of_steps(self.config, words[words.index(self.config) + 1 :])

    def models(self, step: int) -> tuple[Path, Path]:
        """Captioner and decoder after so many steps, 0 being before the first: of what the stage does not train, those
        that the run starts from.

        Raises:
            CheckpointError: the captioner of that step is not there.
        """
        stage = self.config.removeprefix("uae_")
        captioner, decoder, saved = self.root / "captioner", self.root / "decoder", self.folder / step_name(step)
        if step and stage == "cold_start":
            return saved / CAPTIONER, saved / EXPORT_FOLDER
        if step and stage in CAPTIONING:
            captioner = trained_captioner(self.folder, step)
        return captioner, saved / EXPORT_FOLDER if step and stage in EXPLORING else decoder

    @property
    def checkpoint(self) -> Path:
        """What the run saves at its end."""
        return self.folder / step_name(self.steps)


def joint_trainings(
    folders: Mapping[Path, JointConfig], jobs: int, say: Say, world: Callable[[], World] | None = None
) -> None:
    """Tiny models of every folder, ``jobs`` at a time, unless they are there.

    They are those of the scenes, with data beside them, or of a world that a function makes, which other processes
    must be able to import.
    """
    say(f"{len(folders)} joint trainings of the tiny models, {jobs} at a time")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for folder in pool.map(functools.partial(_joint_training, world), folders.items()):
            say(f"joint training: {folder}")


def _joint_training(world: Callable[[], World] | None, start: tuple[Path, JointConfig]) -> Path:
    torch.set_num_threads(1)
    folder, config = start
    folder.mkdir(parents=True, exist_ok=True)
    if world is None:
        prepare(folder, config.seed, Timings(), lambda _: None, config)
    else:
        train_once(folder, config, Timings(), lambda _: None, world())
    return folder


def compare(
    runs: Sequence[Run],
    jobs: int,
    say: Say,
    *,
    before: Callable[[Run], Mapping[str, float]],
    after: Callable[[Run], Mapping[str, float]],
) -> list[Row]:
    """Execute runs; a row for each.

    Args:
        runs: those that share a root share what they start from.
        jobs: commands at a time.
        say: reports.
        before: held-out figures of what a run starts from, measured once per root.
        after: held-out figures of what it has trained.
    """
    seconds = execute(runs, jobs, say)
    start = {root: before(run) for root, run in {run.root: run for run in runs}.items()}
    return [
        {
            **run.labels,
            "seed": run.seed,
            "before": start[run.root],
            "after": after(run),
            "curve": read_curve(run.folder / METRICS),
            "seconds": seconds[run.name],
            "cost": run.costs(),
        }
        for run in runs
    ]


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


def executed(runs: Sequence[Run], jobs: int, say: Say) -> Iterator[tuple[Run, float]]:
    """Run commands as `execute` does, and yield each with its seconds once it is done, whichever is first.

    Raises:
        SystemExit: one failed, naming its log; those behind it are not begun.
    """
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        waiting = {pool.submit(_execute, run, say): run for run in runs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            for left in waiting:
                left.cancel()


def _execute(run: Run, say: Say) -> float:
    words, stamp = run.words, run.folder / FINISHED
    if (before := kept(stamp, {"command": words})) is not None:
        say(f"{run.name}: there already")
        return float(before["seconds"])
    # What an interrupted run left behind would count among the steps that are kept of this one.
    shutil.rmtree(run.folder, ignore_errors=True)
    started = time.perf_counter()
    code = run_training([sys.executable, *words], run.folder)
    if code != 0:
        raise SystemExit(f"{run.name}: exit code {code}, see {run.folder / 'train.log'}")
    seconds = round(time.perf_counter() - started, 1)
    write_json(stamp, {"command": words, "seconds": seconds})
    say(f"{run.name}: {run.steps} steps of {run.config} in {seconds:.0f} s")
    return seconds


def kept(file: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file of JSON holds, if it was for the same request: all of its keys are there, with their values."""
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found if all(found.get(key) == value for key, value in request.items()) else None


def read_curve(metrics: Path, names: Mapping[str, str] = CURVE) -> list[dict[str, float]]:
    """Training curve from verl's file logger: per step the metrics it has."""
    curve = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found = {name: record["data"][key] for name, key in names.items() if key in record["data"]}
        if "reward" in found:
            curve.append({"step": record["step"], **found})
    return curve
