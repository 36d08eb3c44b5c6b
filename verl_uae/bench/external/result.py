# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One form for the results of all scorers: what should have been scored, scores per category with counts and intervals,
what is missing, and tables. Raw and rewritten prompts are never in one table.

Shape legend: P prompts, R resamples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verl_uae import __version__
from verl_uae.bench.external import BENCHES, Bench
from verl_uae.bench.external.draw import PROMPTS, read_manifest
from verl_uae.bench.external.prompts import LAYOUTS, ORIGINAL, REWRITTEN, read_prompts
from verl_uae.bench.results import (
    LEVEL,
    NOTHING,
    RESAMPLES,
    escaped,
    incomplete,
    interval,
    markdown_table,
    number,
    read_json,
    resampled_means,
    with_notes,
)
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import sha256_of
from verl_uae.seeding import derive_seed

TITLES = {"geneval": "GenEval", "genevalpp": "GenEval++", "dpg": "DPG-Bench"}


@dataclass(frozen=True, slots=True)
class ExpectedPrompt:
    """A prompt as its scorer knows it."""

    text: str
    drawn: str
    tag: str | None


@dataclass(frozen=True, slots=True)
class Expected:
    """Everything that belongs to a result."""

    bench: Bench
    prompt_set: str
    """``original`` or ``rewritten``."""
    prompts: dict[str, ExpectedPrompt]
    """By key, in the benchmark's order."""
    samples: int
    """Per prompt."""
    source: dict[str, Any]
    """Digest of the prompts; settings of the drawing where it is ours."""


def expected_of_drawn(bench: Bench, out: str | os.PathLike[str]) -> Expected:
    """What `draw_prompts` set out to draw, drawn or not.

    Raises:
        ConfigError: ``out`` is no such folder, or of another benchmark.
        DataError: its list of prompts is damaged.
    """
    manifest = read_manifest(out)
    if manifest.get("bench") != bench:
        raise ConfigError("--drawn", f"{out} has the pictures of {manifest.get('bench')}, not of {bench}")
    prompts: dict[str, ExpectedPrompt] = {}
    path = Path(out) / PROMPTS
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        prompts = {line["key"]: ExpectedPrompt(line["prompt"], line["drawn_prompt"], line["tag"]) for line in lines}
        samples, name = int(manifest["samples_per_prompt"]), str(manifest["prompt_set"])
        source = {key: manifest[key] for key in ("source", "rewritten", "drawing")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(path, None, f"is not what was written: {error}") from error
    if len(prompts) != manifest["prompts"]:
        raise DataError(path, None, f"has {len(prompts)} prompts, the manifest {manifest['prompts']}")
    return Expected(bench, name, prompts, samples, source)


def expected_of_source(
    bench: Bench,
    source: str | os.PathLike[str],
    *,
    samples: int | None = None,
    rewritten: str | os.PathLike[str] | None = None,
    prompt_set: str | None = None,
) -> Expected:
    """What pictures of another program should be.

    Args:
        bench: ``geneval``, ``genevalpp`` or ``dpg``.
        source: the benchmark's own prompts, see `read_prompts`.
        samples: per prompt; default: what the benchmark asks for.
        rewritten: the texts that were drawn, where they are others.
        prompt_set: ``original`` or ``rewritten``, where the rewritten texts are not at hand.

    Raises:
        ConfigError: an argument is impossible.
        DataError: see `read_prompts`.
    """
    found = read_prompts(bench, source, rewritten)
    if prompt_set not in (None, ORIGINAL, REWRITTEN):
        raise ConfigError("--prompt-set", f"must be {ORIGINAL} or {REWRITTEN}, got {prompt_set!r}")
    if rewritten is not None and prompt_set == ORIGINAL:
        raise ConfigError("--prompt-set", f"is {ORIGINAL}, but rewritten prompts are given")
    layout = LAYOUTS[bench]
    count = layout.check_samples(layout.samples if samples is None else samples)
    prompts = {prompt.key: ExpectedPrompt(prompt.text, prompt.drawn, prompt.tag) for prompt in found.prompts}
    described = {"source": found.source, "rewritten": found.rewritten, "drawing": None}
    return Expected(bench, prompt_set or found.name, prompts, count, described)


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


def scores_result(finding: Finding, expected: Expected, files: Sequence[Path], seed: int) -> dict[str, Any]:
    """The content of the result file.

    Args:
        finding: of a reader.
        expected: what should have been scored.
        files: the scorer's files, whose digests are noted.
        seed: of the bootstrap.
    """
    complete = not finding.missing and finding.overall is not None
    return {
        "bench": expected.bench,
        "prompt_set": expected.prompt_set,
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
    """A file of :func:`scores_result`.

    Raises:
        DataError: it is another one.
    """
    content = read_json(path)
    known = isinstance(content, dict) and content.get("bench") in BENCHES
    if not known or content.get("prompt_set") not in (ORIGINAL, REWRITTEN) or "categories" not in content:
        raise DataError(path, None, "is no result of `verl-uae bench read`")
    return dict(content)


def scores_tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One table for each benchmark and set of prompts, scores times 100.

    Args:
        results: by the name of the row, in order.
    """
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, content in results.items():
        groups.setdefault((content["bench"], content["prompt_set"]), {})[name] = content
    return "\n".join(_table(bench, prompt_set, rows) for (bench, prompt_set), rows in groups.items())


def _table(bench: str, prompt_set: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for content in rows.values() for name in _categories(content)))
    head = ["result", "scores", *names, "overall", "95% interval"]
    table = markdown_table(head, [_cells(row, content, names) for row, content in rows.items()])
    return with_notes([f"**{TITLES[bench]}, {prompt_set} prompts**", "", *table], _notes(rows))


def _categories(content: Mapping[str, Any]) -> dict[str, float | None]:
    """Scores by category: ours, or the scorer's own where the answers are not at hand."""
    if content["categories"]:
        return {name: category["score"] for name, category in content["categories"].items()}
    return dict(content["official"].get("l1", {}))


def _cells(row: str, content: Mapping[str, Any], names: list[str]) -> list[str]:
    scores = _categories(content)
    overall = _percent(content["overall"])
    if content["overall"] is None:
        overall = f"{NOTHING} (partial: {_percent(content['partial_overall'])})"
    bounds = content["overall_interval"]
    between = NOTHING if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"
    count = f"{content['scored']} of {content['prompts'] * content['samples_per_prompt']}"
    return [escaped(row), count, *(_percent(scores.get(name)) for name in names), overall, between]


def _notes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    for row, content in rows.items():
        if content["missing"]:
            notes.append(incomplete(row, content["missing"]))
        notes += [f"* {escaped(row)}: {note}." for note in content["notes"]]
    if len({content["source"]["sha256"] for content in rows.values()}) > 1:
        notes.append("* The rows are not over the same prompts and do not compare.")
    if len({repr(content["rewritten"] and content["rewritten"]["sha256"]) for content in rows.values()}) > 1:
        notes.append("* The rows are not of the same rewritten prompts.")
    return notes


def _percent(score: float | None) -> str:
    return number(None if score is None else 100 * score)
