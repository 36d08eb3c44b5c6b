# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What every learning experiment is: runs over seeds, one result file, bars that must hold, a table and a plot.

An experiment trains, measures and judges; the runner here writes. What it measures is a *report*, the content of its
result file, and bars, table and plot are made of that alone: a file of an earlier run is shown like a new one.

A row of a report that compares runs holds the run's labels and seed, its held-out figures ``before`` and ``after``,
its training ``curve`` (``step``, ``reward`` and what `runs.CURVE` names), its ``seconds`` and the ``cost`` of a step
(`costs.of_steps`).
"""

from __future__ import annotations

import copy
import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.learning.statistics import (
    AXES,
    TUNING_SEEDS,
    Row,
    gains,
    half_width,
    mean_and_spread,
    select,
    spent,
)
from benchmarks.measure import provenance
from verl_uae.bench.results import read_json
from verl_uae.errors import ConfigError, DataError
from verl_uae.scenes.quickstart import Say

Report = dict[str, Any]


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
    seeds: ClassVar[tuple[int, ...]] = TUNING_SEEDS
    """Where they are not given."""
    axes: ClassVar[tuple[str, ...]] = tuple(AXES)
    """Of the plot."""
    folder: ClassVar[str] = ""
    """Name of the experiment whose folder it shares by default; "": its own."""
    assumed_minutes: ClassVar[float | None] = None
    """Of all commands one after the other, where no result file says it."""
    arms: tuple[str, ...] = ()
    """What is compared, where it can be narrowed."""
    axis = "step"
    """Of the plot, one of `axes`."""

    def chosen(self, arms: Sequence[str] | None, axis: str) -> Experiment:
        """The same with some of its arms, all where None, and with another axis of its plot.

        Raises:
            ConfigError: it has no such arm or axis.
        """
        unknown = sorted(set(arms or ()) - set(self.arms))
        if unknown:
            known = ", ".join(self.arms) or "none"
            raise ConfigError("--arms", f"{self.name} has no arm {', '.join(unknown)}; its arms: {known}")
        if axis not in self.axes:
            raise ConfigError("--axis", f"{axis}: the plot of {self.name} has {', '.join(self.axes)}")
        other = copy.copy(self)
        other.arms, other.axis = tuple(arms or self.arms), axis
        return other

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

    def run(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say, command: str) -> list[Bar]:
        """Measure, write ``<name>.json`` and the plot, say the table; returns the bars.

        Args:
            command: what was typed, for the file.
        """
        report: Report = {}
        made = {**provenance("cpu"), "seeds": list(seeds), "command": command}
        made.pop("seed")
        for found in self.measure(out, seeds=seeds, steps=steps, jobs=jobs, say=say):
            report = {"steps": steps, "made": made, **found}
            self.write(out, report)
        say("\n".join(self.table(report)))
        if len(seeds) > 1:
            say(spread_note(len(seeds)))
        return self.bars(report)

    def show(self, out: Path, results: Path, say: Say) -> list[Bar]:
        """Plot a written result file into a folder and say its table; returns its bars.

        Raises:
            DataError: the file cannot be read, or is another experiment's.
            ConfigError: it does not hold the axis of the plot.
        """
        report = read_json(results)
        try:
            table, bars = self.table(report), self.bars(report)
            self.plot(out, report)
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(results, None, f"is no result of {self.name}: {error!r}") from error
        say("\n".join(table))
        return bars

    def write(self, out: Path, report: Report) -> None:
        """Write the result file, with the bars near its top, and the plot."""
        bars = {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in self.bars(report)}
        top = {key: report[key] for key in ("steps", "made")}
        content = json.dumps({**top, "bars": bars, **report}, indent=1)
        (out / f"{self.name}.json").write_text(content + "\n", encoding="utf-8")
        self.plot(out, report)


# ---------------------------------------------------------------- bars over seeds


def every(claim: str, values: Sequence[float], at_least: float, noun: str = "smallest gain") -> Bar:
    """Whether every seed's gain reaches a number."""
    return Bar(claim, min(values) >= at_least, f"{noun} {min(values):+.3f}")


def beyond_seeds(claim: str, values: Sequence[float]) -> Bar:
    """Whether the mean gain is more than twice its standard deviation over seeds."""
    mean, spread = mean_and_spread(values)
    return Bar(claim, mean > 2 * spread, f"mean gain {mean:+.3f}, standard deviation over seeds {spread:.3f}")


def leads_bar(claim: str, values: Sequence[float]) -> Bar:
    """Whether the lead is above 0 on every seed."""
    mean, spread = mean_and_spread(values)
    figure = f"smallest lead {min(values):+.3f}, mean {mean:+.3f}, standard deviation over seeds {spread:.3f}"
    return Bar(claim, min(values) > 0.0, figure)


def spread_note(count: int) -> str:
    """What the ± of the tables is, over so many seeds."""
    return (
        f"± is the standard deviation over {count} seeds; the 95 % t interval of a mean over them is "
        f"± {half_width(count):.2f} times that."
    )


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
    path: Path,
    rows: Sequence[Row],
    panel: str,
    line: str,
    *,
    x: str,
    size: tuple[float, float],
    axis: str = "step",
    **options: Any,
) -> None:
    """Training reward, a panel for each value of one label and a line for each of another.

    Args:
        path: of the picture.
        rows: of runs.
        panel: label of the panels.
        line: label of the lines, or ``seed``.
        x: what a step is called.
        size: inches.
        axis: against what, of `statistics.AXES`.
        options: of `figure`.
    """
    panels = list(dict.fromkeys(row[panel] for row in rows))
    with figure(path, len(panels), size, **options) as axes:
        for drawn, value in zip(axes, panels, strict=True):
            for row in select(rows, **{panel: value}):
                rewards = [point["reward"] for point in row["curve"]]
                drawn.plot(spent(row, axis), rewards, label=f"seed {row['seed']}" if line == "seed" else row[line])
            drawn.set_title(f"seed {value}" if panel == "seed" else value, fontsize=9)
            drawn.set_xlabel(x if axis == "step" else AXES[axis])
        axes[0].set_ylabel("training reward")
