# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which objective of Understanding for Generation learns most from as many drawn pictures? From the start with room of
`u4g`, every preset as it is, with candidates to choose from, and, on the forward process, with NormGuard's hinge.

``Objectives`` writes ``objectives.json`` and ``objectives.png``, ``Rates`` ``rates.json`` and ``rates.png``: how the
learning rate of each was chosen, on a seed that is not reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.learning.experiment import Bar, Experiment, Report, curves, every, shown, spread_cells
from benchmarks.learning.runs import Run, joint_trainings
from benchmarks.learning.statistics import (
    REPORTED_SEEDS,
    TUNING_SEEDS,
    Row,
    by_seed,
    gains,
    leads,
    mean_and_spread,
    select,
    spent,
    t_interval,
)
from benchmarks.learning.u4g import COLUMNS as U4G_COLUMNS
from benchmarks.learning.u4g import PRESETS, RECOMMENDED, STARTS, compared, words
from verl_uae.bench.results import between, markdown_table
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say

START = "room"
#: Presets whose loss is on the forward process.
FORWARD = ("nft", "awm", "dgpo", "crd")
#: What is asked of an objective -> overrides.
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    # Twice the candidates, and half as many steps: as many drawn pictures.
    "pool": ("uae.u4g.pool.size=16", "uae.u4g.pool.choose=best_worst"),
    "guard": ("uae.u4g.objective.norm_guard=1.0",),
}
#: Learning rates that `Rates` compares, and those that it chose.
RATES = ("2e-4", "5e-4", "1e-3")
CHOSEN: dict[str, str] = dict.fromkeys(PRESETS, "2e-4")
COLUMNS = {key: U4G_COLUMNS[key] for key in ("reward", "mse", "drawn", "drawn/scene")}


def arms_of(presets: Sequence[str]) -> tuple[str, ...]:
    """Every preset in every way that it has."""
    return tuple(
        preset if way == "plain" else f"{preset}+{way}"
        for preset in presets
        for way in WAYS
        if way != "guard" or preset in FORWARD
    )


class Objectives(Experiment):
    """Every objective from the same start, at as many drawn pictures."""

    name = "objectives"
    seeds = REPORTED_SEEDS
    arms = arms_of(PRESETS)
    #: 5 seeds x 22 arms x 80 s, and the joint trainings.
    assumed_minutes = 160.0

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        runs = [planned(out, arm, CHOSEN[arm.split("+")[0]], seed, steps) for seed in seeds for arm in self.arms]
        yield {"rates": CHOSEN, "runs": measured(runs, jobs, say)}

    def bars(self, report: Report) -> list[Bar]:
        """Set before the runs: each objective learns. Which is best is for the table to say."""
        arms = dict.fromkeys(row["arm"] for row in report["runs"])
        return [
            every(f"{arm}: held-out reward up, every seed", gains(select(report["runs"], arm=arm), "reward"), 0.0)
            for arm in arms
        ]

    def table(self, report: Report) -> list[str]:
        """Figures of every arm with what it has used up, then its lead over the default."""
        rows = report["runs"]
        columns = shown(COLUMNS, (row["after"] for row in rows))
        start = {row["seed"]: row["before"] for row in rows}
        arms = list(dict.fromkeys(row["arm"] for row in rows))
        lines, ahead = [["before", "", *spread_cells(list(start.values()), columns), "", "", ""]], []
        base = select(rows, arm=RECOMMENDED)
        for arm in arms:
            mine = select(rows, arm=arm)
            rate = report["rates"][arm.split("+")[0]]
            lines.append([f"`{arm}`", rate, *spread_cells([row["after"] for row in mine], columns), *_used(mine)])
            if base and arm != RECOMMENDED:
                ahead.append([f"`{arm}`", *_lead(mine, base, columns, len(arms) - 1)])
        head = ["arm", "learning rate", *columns.values(), "pictures", "TFLOP", "seconds of steps"]
        behind = [f"lead over `{RECOMMENDED}`", *columns.values()]
        return [*markdown_table(head, lines), *(["", *markdown_table(behind, ahead)] if ahead else [])]

    def plot(self, out: Path, report: Report) -> None:
        """Training reward over drawn pictures, a panel for each objective and a line for each of its arms."""
        rows = [row for row in report["runs"] if row["seed"] == report["runs"][0]["seed"]]
        panels = len({row["preset"] for row in rows})
        how = {"x": "step", "axis": self.axis, "size": (2.2 * panels, 2.6)}
        curves(out / f"{self.name}.png", rows, "preset", "arm", **how, sharey=True)


class Rates(Objectives):
    """Which learning rate is best for each objective, on a seed that is not reported."""

    name = "rates"
    folder = "objectives"
    seeds = TUNING_SEEDS[:1]
    arms = tuple(f"{preset}@{rate}" for preset in PRESETS for rate in RATES)
    #: 27 runs x 80 s.
    assumed_minutes = 36.0

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        asked = [(seed, *arm.split("@")) for seed in seeds for arm in self.arms]
        runs = [planned(out, preset, rate, seed, steps, suffix=f"@{rate}") for seed, preset, rate in asked]
        yield {"runs": measured(runs, jobs, say)}

    def bars(self, report: Report) -> list[Bar]:
        """None: it chooses."""
        return []

    def table(self, report: Report) -> list[str]:
        """Held-out reward after training, a column for each rate."""
        lines = []
        for preset in dict.fromkeys(row["preset"] for row in report["runs"]):
            mine = {row["arm"].split("@")[1]: row for row in select(report["runs"], preset=preset)}
            rewards = {rate: row["after"]["reward"] for rate, row in mine.items()}
            best = max(rewards, key=lambda rate: rewards[rate])
            cells = [f"{rewards[rate]:.3f}" if rate in rewards else "" for rate in RATES]
            lines.append([f"`{preset}`", *cells, best])
        return markdown_table(["preset", *RATES, "best"], lines)


def planned(out: Path, arm: str, rate: str, seed: int, steps: int, suffix: str = "") -> Run:
    """The training command of an arm; with a pool half as many steps, of twice the drawn pictures."""
    preset, _, way = arm.partition("+")
    root = out / f"seed{seed}_{START}"
    overrides = (*words(preset), f"uae.train.optim.lr={rate}", *WAYS[way or "plain"])
    labels = {"preset": preset, "arm": f"{arm}{suffix}"}
    count = max(1, steps // 2) if way == "pool" else steps
    return Run(labels, "uae_u4g", root, root / "runs" / labels["arm"], seed, count, overrides)


def measured(runs: Sequence[Run], jobs: int, say: Say) -> list[Row]:
    """A row for each run."""
    joint_trainings({run.root: JointConfig(seed=run.seed, steps=STARTS[START]) for run in runs}, jobs, say)
    return compared(runs, jobs, say)


def _used(rows: Sequence[Row]) -> list[str]:
    """Drawn pictures, operations and seconds of runs, means over seeds."""
    pictures, flops, seconds = (mean_and_spread([spent(row, axis)[-1] for row in rows])[0] for axis in _AXES)
    return [f"{pictures:.0f}", f"{flops / 1e12:.1f}", f"{seconds:.0f}"]


_AXES = ("pictures", "flops", "seconds")


def _lead(mine: Sequence[Row], base: Sequence[Row], columns: Sequence[str] | dict[str, str], count: int) -> list[str]:
    """Mean of the paired differences, with an interval that holds for so many comparisons at once (Bonferroni)."""
    cells = []
    for key in columns:
        values = leads(by_seed(mine, key), by_seed(base, key))
        digits = "+.4f" if key == "mse" else "+.3f"
        cells.append(f"{mean_and_spread(values)[0]:{digits}} ({between(t_interval(values, count), digits)})")
    return cells
