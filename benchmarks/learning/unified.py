# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The unified stage against either stage alone, from the same start with as many steps and pictures.

Writes ``unified.json`` and ``unified_curves.png``. A step of either stage draws and scores 64 pictures; what it costs
beyond that is reported in seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.learning.experiment import (
    Bar,
    Experiment,
    Report,
    curves,
    leads_bar,
    shown,
    spread_cells,
)
from benchmarks.learning.runs import QUIET, Run, compare, joint_trainings
from benchmarks.learning.stages import COLUMNS as STAGES_COLUMNS
from benchmarks.learning.statistics import REPORTED_SEEDS, by_seed, leads, select
from benchmarks.learning.u4g import RECOMMENDED, REWARD, SCENES, STARTS, similarity
from verl_uae.bench.results import markdown_table
from verl_uae.scenes.evaluate import evaluate
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say
from verl_uae.settings import REWARDED

START = "room"
#: Turns of each stage in the unified run.
CYCLES = 2
COLUMNS = {key: label for key, label in STAGES_COLUMNS.items() if key != "true"}

_DECODER = (f"decoder/objective={RECOMMENDED}", "uae.train.save_contents=[model,diffusers]")


class Unified(Experiment):
    """Whether taking turns beats either stage alone."""

    name = "unified"
    #: G4U alone is not done before 60, and then turns have no lead.
    steps = 120
    seeds = REPORTED_SEEDS

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        turn = steps // (2 * CYCLES)
        turns = (f"uae.unified.g4u_steps={turn}", f"uae.unified.u4g_steps={turn}")
        own = {"g4u": (), "u4g": _DECODER, "unified": (*_DECODER, *turns)}
        roots = {seed: out / f"seed{seed}_{START}" for seed in seeds}
        joint_trainings({root: JointConfig(seed=seed, steps=STARTS[START]) for seed, root in roots.items()}, jobs, say)
        runs = [
            Run(
                {"variant": variant},
                f"uae_{variant}",
                root,
                root / "runs" / variant,
                seed,
                steps,
                (*own[variant], REWARD, *QUIET),
            )
            for seed, root in roots.items()
            for variant in REWARDED
        ]
        yield {
            "runs": compare(
                runs, jobs, say, before=lambda run: measure(run, 0), after=lambda run: measure(run, run.steps)
            )
        }

    def bars(self, report: Report) -> list[Bar]:
        def after(variant: str) -> dict[int, float]:
            return by_seed(select(report["runs"], variant=variant), "reward")

        return [
            leads_bar(
                f"unified: held-out reward above {alone} alone after as many steps, every seed",
                leads(after("unified"), after(alone)),
            )
            for alone in ("g4u", "u4g")
        ]

    def table(self, report: Report) -> list[str]:
        """Means over seeds with their standard deviation."""
        rows = report["runs"]
        columns = shown(COLUMNS, (row["before"] for row in rows))
        lines = [["before", *spread_cells([row["before"] for row in select(rows, variant="g4u")], columns), ""]]
        for variant in REWARDED:
            found = select(rows, variant=variant)
            # Of all steps, start-up and saving left out.
            seconds = statistics.mean(sum(point["seconds"] for point in row["curve"]) for row in found)
            cells = spread_cells([row["after"] for row in found], columns)
            lines.append([f"`uae_{variant}`", *cells, f"{seconds:.0f}"])
        return markdown_table(["", *columns.values(), "seconds of steps"], lines)

    def plot(self, out: Path, report: Report) -> None:
        """Training reward, a panel per seed and a line per variant."""
        rows = report["runs"]
        how = {"x": "step", "axis": self.axis, "size": (3.4 * len({row["seed"] for row in rows}), 2.8)}
        curves(out / "unified_curves.png", rows, "seed", "variant", **how, sharey=True)


def measure(run: Run, step: int) -> Mapping[str, float]:
    """Caption held-out scenes with the captioner of a run after so many steps, redraw them with its decoder."""
    reader = run.root / "captioner"
    return evaluate(*run.models(step), reader, n=SCENES, seed=run.seed, reward=similarity).metrics
