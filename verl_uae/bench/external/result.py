# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One form for the results of all scorers: scores per category with counts and intervals, what is missing, and tables.
Raw and rewritten prompts are never in one table.

Shape legend: P prompts, R resamples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verl_uae.bench.external import BENCHES
from verl_uae.bench.external.prompts import ORIGINAL, REWRITTEN, PromptSet
from verl_uae.bench.results import (
    LEVEL,
    NOTHING,
    RESAMPLES,
    between,
    escaped,
    incomplete,
    interval,
    markdown_table,
    number,
    read_json,
    resampled_means,
    with_notes,
)
from verl_uae.errors import DataError
from verl_uae.files import sha256_of
from verl_uae.seeding import derive_seed
from verl_uae.versions import __version__

TITLES = {"geneval": "GenEval", "genevalpp": "GenEval++", "dpg": "DPG-Bench"}


@dataclass(slots=True)
class Category:
    """Points of a category, prompt by prompt; a prompt keeps its samples together when prompts are resampled."""

    expected: int
    """Scores there should be."""
    points: list[float] = field(default_factory=list)
    """Sum of the scores of each prompt that has any."""
    counts: list[int] = field(default_factory=list)
    """Number of scores of each of those prompts."""

    def add(self, scores: Sequence[float]) -> None:
        """Take the scores of one prompt; none are no prompt."""
        if scores:
            self.points.append(float(sum(scores)))
            self.counts.append(len(scores))

    @property
    def score(self) -> float | None:
        """Mean over all scores, in [0, 1]; None without any."""
        return sum(self.points) / sum(self.counts) if self.counts else None

    def resampled(self, seed: int, name: str) -> np.ndarray:
        """Scores (R,) of resampled prompts."""
        table_P2 = np.array([self.points, self.counts], dtype=np.float64).T
        # Categories of one size would share their draws otherwise, and vary together.
        means_R2 = resampled_means(table_P2, derive_seed(seed, name))
        return np.asarray(means_R2[:, 0] / means_R2[:, 1])

    def as_json(self, seed: int, name: str) -> dict[str, Any]:
        """Score, denominator, and interval."""
        return {
            "score": self.score,
            "points": sum(self.points),
            "count": sum(self.counts),
            "expected": self.expected,
            "prompts": len(self.counts),
            "interval": interval(self.resampled(seed, name)) if self.counts else None,
        }


@dataclass(slots=True)
class Finding:
    """What a reader found in the files of a scorer."""

    categories: dict[str, Category]
    overall: float | None
    """By the benchmark's rule, over the scores there are; None without any."""
    overall_interval: list[float] | None
    rule: str
    """How ``overall`` follows from the scores."""
    official: dict[str, Any]
    """What the scorer itself says, or would say, of its files, by its own arithmetic."""
    scored: int
    """Samples that have a score."""
    missing: list[dict[str, str]] = field(default_factory=list)
    """``what`` and ``reason``; anything here makes the result incomplete."""
    notes: list[str] = field(default_factory=list)
    """Known faults of the scorer that the numbers carry."""


def mean_over_categories(categories: Mapping[str, Category], seed: int) -> tuple[float | None, list[float] | None]:
    """Plain mean over the categories that have scores, and its interval; prompts are resampled within categories."""
    scored = {name: category for name, category in categories.items() if category.score is not None}
    if not scored:
        return None, None
    samples_R = np.mean([category.resampled(seed, name) for name, category in scored.items()], axis=0)
    return float(np.mean([category.score for category in scored.values()])), interval(samples_R)


def scores_result(finding: Finding, expected: PromptSet, files: Sequence[Path], seed: int) -> dict[str, Any]:
    """The content of the result file; of the scorer's files it notes the digests."""
    complete = not finding.missing and finding.overall is not None
    return {
        "bench": expected.bench,
        "prompt_set": expected.name,
        "complete": complete,
        "overall": finding.overall if complete else None,
        "partial_overall": None if complete else finding.overall,
        "overall_interval": finding.overall_interval,
        "rule": finding.rule,
        "categories": {name: category.as_json(seed, name) for name, category in finding.categories.items()},
        "official": finding.official,
        "missing": finding.missing,
        "notes": finding.notes,
        "scored": finding.scored,
        "prompts": len(expected.prompts),
        "samples_per_prompt": expected.samples,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "unit": "prompt"},
        **expected.source,
        "files": {path.name: sha256_of(path) for path in files},
        "version": __version__,
    }


def read_scores(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of :func:`scores_result`; DataError for another."""
    content = read_json(path)
    known = isinstance(content, dict) and content.get("bench") in BENCHES
    if not known or content.get("prompt_set") not in (ORIGINAL, REWRITTEN) or "categories" not in content:
        raise DataError(path, None, "is no result of `verl-uae bench read`")
    return dict(content)


def scores_tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One table for each benchmark and set of prompts, scores times 100; results by the name of the row."""
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, content in results.items():
        groups.setdefault((content["bench"], content["prompt_set"]), {})[name] = content
    return "\n".join(_table(f"**{TITLES[bench]}, {name} prompts**", rows) for (bench, name), rows in groups.items())


def _table(title: str, contents: Mapping[str, Mapping[str, Any]]) -> str:
    # Scores by category: ours, or the scorer's own where the answers are not at hand.
    scores = {
        row: {name: category["score"] for name, category in content["categories"].items()}
        or content["official"].get("l1", {})
        for row, content in contents.items()
    }
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    rows, notes = [], []
    for row, content in contents.items():
        overall = _percent(content["overall"])
        if content["overall"] is None:
            overall = f"{NOTHING} (partial: {_percent(content['partial_overall'])})"
        bounds = content["overall_interval"] and [100 * bound for bound in content["overall_interval"]]
        count = f"{content['scored']} of {content['prompts'] * content['samples_per_prompt']}"
        cells = [_percent(scores[row].get(name)) for name in names]
        rows.append([escaped(row), count, *cells, overall, between(bounds)])
        notes += [incomplete(row, content["missing"])] if content["missing"] else []
        notes += [f"* {escaped(row)}: {note}." for note in content["notes"]]
    if len({content["source"]["sha256"] for content in contents.values()}) > 1:
        notes.append("* The rows are not over the same prompts and do not compare.")
    if len({repr(content["rewritten"] and content["rewritten"]["sha256"]) for content in contents.values()}) > 1:
        notes.append("* The rows are not of the same rewritten prompts.")
    table = markdown_table(["result", "scores", *names, "overall", "95% interval"], rows)
    return with_notes([title, "", *table], notes)


def _percent(score: float | None) -> str:
    return number(None if score is None else 100 * score)
