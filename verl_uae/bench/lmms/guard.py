# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a captioner lost in RL: two result files of lmms-eval, before and after, metric by metric.

UAE trained against a decoder that cannot draw text loses 6.2 points on the OCR questions of MMT-Bench and 11.6 on
documents, which its overall score does not show (arXiv 2509.09666v5, tables 7 and 11). File format: lmms-eval 0.7.3,
``loggers/evaluation_tracker.py``: ``results`` by task with keys ``metric,filter``, ``higher_is_better``,
``n-samples``, ``versions``, ``config``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_uae.bench.results import NOTHING, markdown_table, number, read_json, with_notes
from verl_uae.errors import ConfigError, DataError

#: A drop is beyond its limit if it is by more than the rounding of a difference.
_ROUNDING = 1e-9

#: Metrics of reading: task and metric, ours and those of lmms-eval's own tasks.
READING = (
    ("uae_ocrbench", "accuracy"),
    ("uae_mmt_val", "ocr"),
    ("uae_mmt_val", "doc_understanding"),
    ("ocrbench", "ocrbench_accuracy"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One metric before and after, in points (a share times 100)."""

    task: str
    metric: str
    before: float
    after: float
    drop: float
    """How much worse it became; negative where it became better."""
    standard_error: float | None
    """Of the difference, as if the answers of both were independent; they share their questions, so it is an upper
    bound where right answers coincide. None where a file has none."""
    count: int
    """Rows of the task."""
    watched: bool
    """Whether the limit applies to it."""


def read_changes(
    before: str | os.PathLike[str], after: str | os.PathLike[str], watch: Sequence[str] | None = None
) -> list[Change]:
    """Compare two result files.

    Args:
        before: ``*_results.json`` of the captioner before RL.
        after: the same after RL.
        watch: ``TASK:METRIC`` to watch; default: those of `READING` that are in ``before``.

    Returns:
        Every metric that both have, in the order of the file.

    Raises:
        ConfigError: there is nothing to watch.
        DataError: a file is no result, a watched metric is missing after RL, or the two are not over the same rows.
    """
    first, second = _read(before), _read(after)
    watched = _watched(Path(before), first, watch)
    changes = []
    for task, metrics in first["results"].items():
        for metric in [name for name in _metrics(metrics) if name in _metrics(second["results"].get(task, {}))]:
            _check_rows(Path(after), task, first, second)
            better = first.get("higher_is_better", {}).get(task, {}).get(metric)
            changes.append(_change(task, metric, first, second, better is not False, (task, metric) in watched))
    lost = sorted(watched - {(change.task, change.metric) for change in changes})
    if lost:
        raise DataError(Path(after), None, f"has no {':'.join(lost[0])}, which is watched")
    return changes


def exceeded(changes: Sequence[Change], max_drop: float) -> list[Change]:
    """The watched ones that dropped by more than ``max_drop`` points."""
    return [change for change in changes if change.watched and change.drop > max_drop + _ROUNDING]


def guard_table(changes: Sequence[Change], max_drop: float) -> str:
    """A Markdown table, and a line for each watched metric beyond the limit."""
    head = ["task", "metric", "rows", "before", "after", "drop", "standard error", f"limit {max_drop:g}"]
    beyond = exceeded(changes, max_drop)
    rows = []
    for change in changes:
        verdict = NOTHING if not change.watched else ("exceeded" if change in beyond else "kept")
        numbers = [number(value) for value in (change.before, change.after, change.drop, change.standard_error)]
        rows.append([change.task, change.metric, str(change.count), *numbers, verdict])
    warnings = [
        f"* {change.task}:{change.metric} dropped by {change.drop:.2f} points, more than {max_drop:g}."
        for change in beyond
    ]
    return with_notes(markdown_table(head, rows, words=(0, 1, 7)), warnings)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = read_json(path)
    content = {"versions": {}, "higher_is_better": {}, "config": {}, **content} if isinstance(content, dict) else {}
    tables = [content.get(name) for name in ("results", "n-samples", "versions", "higher_is_better", "config")]
    for table in tables[:2]:
        tables += table.values() if isinstance(table, dict) else []
    if not all(isinstance(table, dict) for table in tables):
        raise DataError(Path(path), None, "is no result of lmms-eval")
    return content


def _metrics(entries: Mapping[str, Any]) -> dict[str, str]:
    """Keys of numbers by name of the metric, without their standard errors."""
    found: dict[str, str] = {}
    for key, value in entries.items():
        name, comma, _ = key.partition(",")
        if comma and "_stderr" not in name and isinstance(value, int | float) and not isinstance(value, bool):
            found.setdefault(name, key)
    return found


def _watched(path: Path, content: Mapping[str, Any], watch: Sequence[str] | None) -> set[tuple[str, str]]:
    have = {(task, metric) for task, entries in content["results"].items() for metric in _metrics(entries)}
    if watch is None:
        found = set(READING) & have
        if not found:
            raise ConfigError("--watch", f"{path} has none of {', '.join(':'.join(pair) for pair in READING)}")
        return found
    wanted = {(task, metric) for task, _, metric in (text.partition(":") for text in watch)}
    for pair in sorted(wanted - have):
        raise ConfigError("--watch", f"{path} has no {':'.join(pair)}")
    return wanted


def _check_rows(path: Path, task: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """A drop means something over the same rows of the same task."""
    for section, what in (("n-samples", "number of rows"), ("versions", "version")):
        pair = [content.get(section, {}).get(task) for content in (first, second)]
        if pair[0] != pair[1]:
            raise DataError(path, None, f"{task} is of another {what} than before: {pair[1]!r}, not {pair[0]!r}")
    for key in ("limit", "offset"):
        pair = [content.get("config", {}).get(key) or 0 for content in (first, second)]
        if pair[0] != pair[1]:
            raise DataError(path, None, f"was run with another {key} than before: {pair[1]}, not {pair[0]}")


def _change(
    task: str, metric: str, first: Mapping[str, Any], second: Mapping[str, Any], higher: bool, watched: bool
) -> Change:
    values, errors = [], []
    for content in (first, second):
        entries = content["results"][task]
        key = _metrics(entries)[metric]
        values.append(float(entries[key]))
        errors.append(entries.get(key.replace(",", "_stderr,", 1)))
    if not all(map(math.isfinite, values)):
        raise DataError("results", None, f"{task}:{metric} is {values[0]} before and {values[1]} after")
    # Some tasks of lmms-eval count in shares, some in percent.
    scale = 100.0 if max(map(abs, values)) <= 1.0 else 1.0
    known = [float(error) for error in errors if isinstance(error, int | float) and math.isfinite(error)]
    error = scale * math.hypot(*known) if len(known) == 2 else None
    before, after = (scale * value for value in values)
    count = int(first["n-samples"][task]["effective"])
    return Change(task, metric, before, after, before - after if higher else after - before, error, count, watched)
