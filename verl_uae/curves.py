# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Curves of a run for its pages, from the metrics that verl's logger ``file`` has written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

#: Title of a chart -> its metrics; those that end with a slash are the beginning of names.
CHARTS = {
    "Validation": ("val-core/",),
    "Reward of training": ("reward/score/mean", "drawing/score/mean"),
    "Loss": ("train/loss/mean", "train/loss", "actor/loss"),
    "Norm of the gradient": ("train/grad_norm", "train/captioner_grad_norm", "actor/grad_norm"),
    "Words per caption": ("caption/words/mean",),
    "Share of samples or pairs that were left out": ("reward/invalid_frac", "pairs/invalid_frac"),
    "Seconds of a step": ("timing_s/step",),
}

#: Of a chart, pixels of its own; a page shows it as wide as it is.
WIDTH, HEIGHT = 600, 160

#: Most points of a curve.
POINTS = 600

#: Largest step, and largest value of a metric; a difference of two such is still a number. NaN is not at most this.
_MOST = 1e300

#: Step -> name of a metric -> value.
Rows = dict[int, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric in a chart."""

    name: str
    points: str
    """Of an SVG polyline."""
    last: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves that share their axes."""

    title: str
    curves: Sequence[Curve]
    steps: tuple[int, int]
    values: tuple[float, float]
    """Lowest and highest."""
    size: ClassVar[tuple[int, int]] = (WIDTH, HEIGHT)


class MetricsFiles:
    """What charts show of the metrics of all starts of a run: of the file of its logger and of those beside it.

    A file is read on from where the last reading ended, since a page is written in the loop of a run that may be weeks
    long.

    Args:
        own: file of this start.
    """

    def __init__(self, own: str) -> None:
        self._own = Path(own)
        self._read: dict[Path, tuple[int, Rows]] = {}
        """Bytes that were read of a file, and what was in them."""

    def rows(self) -> Rows:
        """Finite values of metrics by step and name. A start goes on from its first step: what an earlier one had
        reached beyond that is of no run any more, whether it was resumed or began anew."""
        found: Rows = {}
        earlier = set(self._own.parent.glob("metrics_*.jsonl")) - {self._own}
        for path in (*sorted(earlier), self._own):
            if path.is_file() and (own := self._rows_of(path)):
                found = {step: dict(data) for step, data in found.items() if step <= min(own)}
                for step, data in own.items():
                    found.setdefault(step, {}).update(data)
        return dict(sorted(found.items()))

    def _rows_of(self, path: Path) -> Rows:
        start, found = self._read.get(path, (0, {}))
        if path.stat().st_size < start:
            # Somebody has written it anew.
            start, found = 0, {}
        with path.open("rb") as file:
            file.seek(start)
            # The last line may be one that is being written.
            text = file.read().rpartition(b"\n")[0]
        for line in text.splitlines():
            if (row := _row(line)) is not None:
                step, data = row
                found.setdefault(step, {}).update(data)
        self._read[path] = (start + len(text), found)
        return found


def _row(line: bytes) -> tuple[int, dict[str, float]] | None:
    """Step and charted metrics of a line; None for somebody else's line."""
    try:
        content = json.loads(line)
        step, data = content["step"], content["data"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(step, int) or not 0 <= step <= _MOST:
        return None
    numbers = {name: value for name, value in data if isinstance(value, int | float) and _is_charted(name)}
    return step, {name: float(value) for name, value in numbers.items() if abs(value) <= _MOST}


def charts(found: Rows) -> list[Chart]:
    """Those of :data:`CHARTS` that the metrics, as :class:`MetricsFiles` has them, have something for."""
    names = dict.fromkeys(name for row in found.values() for name in row)
    drawn = []
    for title, wanted in CHARTS.items():
        chosen = [name for name in names if any(_is(name, one) for one in wanted)]
        series = {name: _thinned([(step, row[name]) for step, row in found.items() if name in row]) for name in chosen}
        if chart := _chart(title, {name: points for name, points in series.items() if points}):
            drawn.append(chart)
    return drawn


def _is_charted(name: str) -> bool:
    return any(_is(name, wanted) for names in CHARTS.values() for wanted in names)


def _is(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith("/") else name == wanted


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    every = -(-len(points) // POINTS)
    # From behind, so that the newest is among them.
    return points[::-1][::every][::-1] if every else []


def _chart(title: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> Chart | None:
    if not series:
        return None
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)

    def place(step: int, value: float) -> str:
        x = WIDTH * (step - first) / (last - first) if last > first else WIDTH / 2
        y = HEIGHT * (high - value) / (high - low) if high > low else HEIGHT / 2
        return f"{x:.1f},{y:.1f}"

    curves = [
        Curve(name, " ".join(place(*point) for point in points), points[-1][1]) for name, points in series.items()
    ]
    return Chart(title, curves, (first, last), (low, high))
