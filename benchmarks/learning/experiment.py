# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What every learning experiment is: runs over seeds, one result file, bars that must hold, a table and a plot.

An experiment trains, measures and judges; the runner here writes. What it measures is a *report*, the content of its
result file, and bars, table and plot are made of that alone: a file of an earlier run is shown like a new one.

A row of a report that compares runs holds the run's labels and seed, its held-out figures ``before`` and ``after``,
its training ``curve`` (``step``, ``reward`` and what `runs.CURVE` names) and its ``seconds``.
"""

from __future__ import annotations

import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from verl_uae.bench.results import read_json
from verl_uae.errors import DataError
from verl_uae.scenes.quickstart import Say

Report = dict[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """One claim about all seeds."""

    claim: str
    met: bool
    figure: str


class Experiment(ABC):
    """One question, asked over seeds."""

    name: ClassVar[str]
    """Of the command and of the result file."""
    steps: ClassVar[int] = 60
    """Training steps of a run where they are not given."""

    @abstractmethod
    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        """Train and measure in a folder, ``jobs`` commands at a time; what is finished there already is not run again.

        Yields:
            The report as far as it goes; the last one is whole.
        """

    @abstractmethod
    def bars(self, report: Report) -> list[Bar]:
        """What must hold, set before the runs."""

    @abstractmethod
    def table(self, report: Report) -> list[str]:
        """The figures, lines of Markdown."""

    @abstractmethod
    def plot(self, out: Path, report: Report) -> None:
        """Write the plot into a folder."""

    def run(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> list[Bar]:
        """Measure, write ``<name>.json`` and the plot, say the table; returns the bars."""
        report: Report = {}
        for found in self.measure(out, seeds=seeds, steps=steps, jobs=jobs, say=say):
            report = {"steps": steps, "torch": torch.__version__, **found}
            self.write(out, report)
        say("\n".join(self.table(report)))
        return self.bars(report)

    def show(self, out: Path, results: Path, say: Say) -> list[Bar]:
        """Plot a written result file into a folder and say its table; returns its bars.

        Raises:
            DataError: the file cannot be read, or is another experiment's.
        """
        report = read_json(results)
        try:
            table, bars = self.table(report), self.bars(report)
            self.plot(out, report)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(results, None, f"is no result of {self.name}: {error!r}") from error
        say("\n".join(table))
        return bars

    def write(self, out: Path, report: Report) -> None:
        """Write the result file, with the bars near its top, and the plot."""
        bars = {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in self.bars(report)}
        top = {key: report[key] for key in ("steps", "torch")}
        content = json.dumps({**top, "bars": bars, **report}, indent=1)
        (out / f"{self.name}.json").write_text(content + "\n", encoding="utf-8")
        self.plot(out, report)


# ---------------------------------------------------------------- figures over seeds


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; 0 for one value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def select(rows: Iterable[Row], **labels: object) -> list[Row]:
    """The rows with these labels."""
    return [row for row in rows if all(row[name] == value for name, value in labels.items())]


def gains(rows: Iterable[Row], key: str) -> list[float]:
    """A figure after minus before, per row."""
    return [row["after"][key] - row["before"][key] for row in rows]


def every(claim: str, values: Sequence[float], at_least: float, noun: str = "smallest gain") -> Bar:
    """Whether every seed's gain reaches a number."""
    return Bar(claim, min(values) >= at_least, f"{noun} {min(values):+.3f}")


def beyond_seeds(claim: str, values: Sequence[float]) -> Bar:
    """Whether the mean gain is more than twice its standard deviation over seeds."""
    mean, spread = mean_and_spread(values)
    return Bar(claim, mean > 2 * spread, f"mean gain {mean:+.3f}, standard deviation over seeds {spread:.3f}")


def lines(bars: Iterable[Bar]) -> list[str]:
    """One line of text per bar."""
    return [f"[{'met' if bar.met else 'MISSED'}] {bar.claim}: {bar.figure}" for bar in bars]


# ---------------------------------------------------------------- tables


def shown(columns: Mapping[str, str], figures: Iterable[Mapping[str, float]]) -> dict[str, str]:
    """The columns whose figure is there everywhere: a file may be older than a figure."""
    figures = list(figures)
    return {key: label for key, label in columns.items() if all(key in one for one in figures)}


def spread_cells(figures: Sequence[Mapping[str, float]], keys: Iterable[str]) -> list[str]:
    """Mean and standard deviation over seeds of every figure."""
    cells = []
    for key in keys:
        mean, spread = mean_and_spread([one[key] for one in figures])
        cells.append(f"{mean:.{_digits(key)}f} ± {spread:.{_digits(key)}f}")
    return cells


def gain_rows(rows: Sequence[Row], label: str, keys: Sequence[str]) -> list[list[str]]:
    """Rows of a table: the mean over seeds before, then, per value of a label, after and gain, ± over seeds."""

    def mean(figures: Iterable[Mapping[str, float]], key: str) -> str:
        return f"{statistics.mean(one[key] for one in figures):.{_digits(key)}f}"

    start = {row["seed"]: row["before"] for row in rows}
    found = [["before", *(mean(start.values(), key) for key in keys)]]
    for value in dict.fromkeys(row[label] for row in rows):
        mine, cells = select(rows, **{label: value}), []
        for key in keys:
            gain, spread = mean_and_spread(gains(mine, key))
            after, digits = mean([row["after"] for row in mine], key), _digits(key)
            cells.append(f"{after} ({gain:+.{digits}f} ± {spread:.{digits}f})")
        found.append([f"`{value}`", *cells])
    return found


def _digits(key: str) -> int:
    return 4 if key == "mse" else 3


# ---------------------------------------------------------------- plots


@contextmanager
def figure(
    path: Path, panels: int, size: tuple[float, float], *, dpi: int = 100, legend: int | None = 8, **options: Any
) -> Iterator[list[Any]]:
    """Panels side by side, matplotlib's axes; with grids and a legend in the first, written as PNG at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, panels, figsize=size, squeeze=False, constrained_layout=True, **options)
    yield list(axes[0])
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False, fontsize=legend)
    drawn.savefig(path, dpi=dpi)
    pyplot.close(drawn)


def curves(
    path: Path, rows: Sequence[Row], panel: str, line: str, *, x: str, size: tuple[float, float], **options: Any
) -> None:
    """Training reward against the step, a panel for each value of one label and a line for each of another."""
    panels = list(dict.fromkeys(row[panel] for row in rows))
    with figure(path, len(panels), size, **options) as axes:
        for axis, value in zip(axes, panels, strict=True):
            for row in select(rows, **{panel: value}):
                steps, rewards = zip(*((point["step"], point["reward"]) for point in row["curve"]), strict=True)
                axis.plot(steps, rewards, label=f"seed {row['seed']}" if line == "seed" else row[line])
            axis.set_title(f"seed {value}" if panel == "seed" else value, fontsize=9)
            axis.set_xlabel(x)
        axes[0].set_ylabel("training reward")
