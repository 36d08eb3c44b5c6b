# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Both stages on a pair that shares its language model: Qwen3-VL captions, and FLUX 3 draws from its states.

Each stage starts from the same jointly trained pair. Writes ``flux3.json`` and ``flux3_curves.png``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning import g4u, u4g
from benchmarks.learning.experiment import Bar, Experiment, Report, curves, every, gain_rows, shown
from benchmarks.learning.runs import QUIET, Run, compare, joint_trainings
from benchmarks.learning.statistics import gains, select
from verl_uae.bench.results import markdown_table
from verl_uae.checkpoints.names import EXPORT_FOLDER
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say, trained_captioner

#: Its language model reads 80 tokens through 32 layers, so half the batch and half the steps of SD3's pair.
JOINT: dict[str, Any] = {"family": "flux3", "steps": 500, "decoder_batch": 32, "warmup_steps": 30}
#: There is no projector.
OWN = ("uae.train.train_projector=false",)
STAGES = {"g4u": (*OWN, *QUIET), "u4g": (*OWN, *u4g.OVERRIDES)}
COLUMNS = {**g4u.COLUMNS, **u4g.COLUMNS}


class Flux3(Experiment):
    """Do both stages raise the held-out reward of a decoder that reads a stock vision-language model."""

    name = "flux3"

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        roots = {seed: out / f"seed{seed}" for seed in seeds}
        joint_trainings({root: JointConfig(seed=seed, **JOINT) for seed, root in roots.items()}, jobs, say)
        runs = {
            stage: [
                Run({"stage": stage}, f"uae_{stage}", root, root / "runs" / stage, seed, steps, overrides)
                for seed, root in roots.items()
            ]
            for stage, overrides in STAGES.items()
        }
        captioned = compare(
            runs["g4u"],
            jobs,
            say,
            before=lambda run: g4u.measure(run.root, run.root / "captioner", run.seed).metrics,
            after=lambda run: g4u.measure(run.root, trained_captioner(run.folder, steps), run.seed).metrics,
        )
        drawn = compare(
            runs["u4g"],
            jobs,
            say,
            before=lambda run: u4g.measure(run.root, run.root / "decoder", run.seed),
            after=lambda run: u4g.measure(run.root, run.checkpoint / EXPORT_FOLDER, run.seed),
        )
        yield {"runs": [*captioned, *drawn]}

    def bars(self, report: Report) -> list[Bar]:
        """Each stage must raise its own reward, and U4G may not buy it with error."""
        u4g_rows = select(report["runs"], stage="u4g")
        worst = max(gains(u4g_rows, "mse"))
        return [
            every("g4u: held-out reward up by at least 0.05, every seed", self._gained(report, "g4u"), 0.05),
            every("u4g: held-out reward up by at least 0.01, every seed", self._gained(report, "u4g"), 0.01),
            Bar("u4g: error not higher, every seed", worst <= 0.0, f"largest change of MSE {worst:+.4f}"),
        ]

    def table(self, report: Report) -> list[str]:
        """A table per stage: means over seeds, gains with their standard deviation over seeds."""
        lines = []
        for stage in STAGES:
            rows = select(report["runs"], stage=stage)
            columns = shown(COLUMNS, (row["before"] for row in rows))
            lines += [*markdown_table(["stage", *columns.values()], gain_rows(rows, "stage", list(columns))), ""]
        return lines

    def plot(self, out: Path, report: Report) -> None:
        """Training reward, a panel per stage and a line per seed."""
        how = {"x": "step", "axis": self.axis, "size": (8, 2.8)}
        curves(out / "flux3_curves.png", report["runs"], "stage", "seed", **how, sharex=True)

    @staticmethod
    def _gained(report: Report, stage: str) -> list[float]:
        return gains(select(report["runs"], stage=stage), "reward")
