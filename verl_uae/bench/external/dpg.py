# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results of DPG-Bench: the ``*_results.txt`` of ``dpg_bench/compute_dpg_bench.py``, its answers, and their questions.

Source: https://github.com/TencentQQGYLab/ELLA, commit 3c228f1. ``dpg_bench.csv`` has one question per line, each with
the questions it depends on. ``X.txt`` has a line ``path, scores of samples, mean``
for each prompt and then the summary; ``X_detail.txt`` has a line ``path, crop, question, answer`` for each question.
Three faults of that scorer are not repeated here, and are named in the notes of a result:

* categories are over the last sample of each prompt only (its issue 60); here over all samples, from the answers;
* with several processes the categories of one are mixed with those of another, for each iterates over a set of its own
  order; here from the answers;
* the first question of the CSV is left out, so a prompt whose other questions depend on it has no score (issue 61).
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from verl_uae.bench.external.result import Category, Expected, Finding
from verl_uae.bench.results import interval, read_text
from verl_uae.errors import DataError

RULE = "mean over prompts of the mean over samples of the share of questions answered yes, parents included"

#: First prompt of ``dpg_bench.csv``, of whose questions the scorer leaves out the one the others depend on.
UNSCORABLE = "partiprompts97"

_CROP = re.compile(r"(?P<path>.*?), \((?P<x0>\d+), (?P<y0>\d+), (?P<x1>\d+), (?P<y1>\d+)\), (?P<rest>.*)")
_SUMMARY = re.compile(r"Model: ")

#: Answers by prompt and sample, in the order of the questions: question and answer as one text.
Answers = dict[str, dict[int, list[str]]]


@dataclass(frozen=True, slots=True)
class DPGQuestion:
    """One question about a picture."""

    number: int
    text: str
    category: str
    """First level: entity, attribute, relation, global, other."""
    parents: tuple[int, ...]
    """Numbers of questions without whose yes a yes does not count."""


@dataclass(frozen=True, slots=True)
class DPGQuestions:
    """The questions of one prompt, in order."""

    questions: tuple[DPGQuestion, ...]

    @property
    def categories(self) -> list[str]:
        """Of each question."""
        return [question.category for question in self.questions]

    def match(self, lines: Sequence[str]) -> tuple[DPGQuestions | None, list[bool]]:
        """The questions that were posed, and whether each was answered yes.

        Args:
            lines: ``question, answer`` in the order posed. The first question of the whole file is not posed by the
                scorer as published, so lines that begin with the second are accepted.

        Returns:
            (None, []) where the lines are not about these questions.
        """
        for posed in (self.questions, self.questions[1:]):
            if len(posed) == len(lines) > 0 and all(
                line.startswith(f"{question.text}, ") for question, line in zip(posed, lines, strict=True)
            ):
                answers = [line[len(question.text) + 2 :] for question, line in zip(posed, lines, strict=True)]
                return DPGQuestions(posed), [answer == "yes" for answer in answers]
        return None, []

    def score(self, yes: Sequence[bool]) -> float:
        """Share of questions answered yes, where a question with a failed parent has failed itself.

        A question that is not there fails nothing. Questions come in order: a parent that failed for its own parent
        fails its children if it comes before them.
        """
        passed: dict[int, bool] = {
            question.number: answer for question, answer in zip(self.questions, yes, strict=True)
        }
        for question in self.questions:
            passed[question.number] &= all(passed.get(parent, True) for parent in question.parents)
        return sum(passed.values()) / len(passed)


def read_questions(path: str | os.PathLike[str]) -> dict[str, DPGQuestions]:
    """Read ``dpg_bench.csv``.

    Returns:
        Items by ``item_id``, which is the stem of the prompt's file.

    Raises:
        DataError: a line has no item, number, question, category or dependency.
    """
    found: dict[str, list[DPGQuestion]] = {}
    try:
        with open(Path(path), encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(Path(path), None, f"cannot be read: {error}") from error
    for row, line in enumerate(lines):
        try:
            parents = tuple(int(text) for text in line["dependency"].split(",") if int(text) != 0)
            category = line["tuple"].split("(")[0].split("-")[0].strip()
            question = DPGQuestion(int(line["proposition_id"]), line["question_natural_language"], category, parents)
            found.setdefault(line["item_id"], []).append(question)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise DataError(Path(path), row, f"is no question of DPG-Bench: {error!r}") from error
    if not found:
        raise DataError(Path(path), None, "has no questions")
    return {key: DPGQuestions(tuple(questions)) for key, questions in found.items()}


def read_dpg(
    path: str | os.PathLike[str],
    expected: Expected,
    seed: int = 0,
    questions: str | os.PathLike[str] | None = None,
) -> Finding:
    """Read a ``*_results.txt``.

    Args:
        path: the file.
        expected: the prompts, and samples per prompt.
        seed: of the bootstrap.
        questions: ``dpg_bench.csv``. With it and the ``_detail.txt`` beside ``path``, scores per category are computed
            from the answers, and the scores in ``path`` are checked against them.

    Raises:
        DataError: a file is no such result, an entry occurs twice or is not expected, or scores do not follow from the
            answers.
    """
    path = Path(path)
    scores, official = _scores(path, expected)
    overall = Category(len(expected.prompts) * expected.samples)
    missing, notes = [], []
    for key in expected.prompts:
        found = scores.get(key)
        if found is not None:
            overall.add(found)
        elif key == UNSCORABLE:
            notes.append(f"{key} has no score: the scorer leaves out its first question (its issue 61)")
        else:
            missing.append({"what": f"{key}.png", "reason": "not in the results"})
    categories: dict[str, Category] = {}
    detail = detail_of(path)
    if questions is not None:
        if not detail.is_file():
            raise DataError(detail, None, "the answers are missing, so --questions has nothing to go with")
        items = read_questions(questions)
        answers = _answers(detail, expected)
        categories = _categories(items, answers, scores, expected, detail)
    else:
        notes.append("categories are the scorer's own, over the last sample of each prompt: pass --questions")
    bounds = interval(overall.resampled(seed, "dpg")) if overall.counts else None
    return Finding(categories, overall.score, bounds, RULE, official, sum(overall.counts), missing, notes)


def detail_of(path: Path) -> Path:
    """The file of answers beside a file of results."""
    return Path(str(path).replace(".txt", "_detail.txt"))


def _scores(path: Path, expected: Expected) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Scores of the samples by prompt, and the summary."""
    lines = read_text(path).split("\n")
    end = next((row for row, line in enumerate(lines) if _SUMMARY.match(line)), len(lines))
    scores: dict[str, list[float]] = {}
    for row, line in enumerate(lines[:end]):
        if not line.strip():
            continue
        cells = line.rsplit(", ", expected.samples + 1)
        try:
            *found, mean = (float(cell) for cell in cells[1:])
        except ValueError as error:
            raise DataError(path, row, f"is no result of DPG-Bench: {error}") from error
        shares = all(0.0 <= score <= 1.0 for score in found)
        if len(found) != expected.samples or not shares or abs(sum(found) / len(found) - mean) > 1e-9:
            raise DataError(path, row, f"is no result of {expected.samples} samples: {line!r}")
        key = _key(cells[0])
        if key not in expected.prompts:
            raise DataError(path, row, f"{key} is no prompt of the set")
        if key in scores:
            raise DataError(path, row, f"{key} occurs twice")
        scores[key] = found
    return scores, _summary(path, lines[end:])


def _key(image: str) -> str:
    return PurePosixPath(image.replace("\\", "/")).name.split(".")[0]


def _summary(path: Path, lines: list[str]) -> dict[str, Any]:
    """Scores as printed, times 1/100; empty where the scorer did not come to its end."""
    official: dict[str, Any] = {}
    section: dict[str, float] = {}
    for line in lines:
        name, _, value = line.strip().rpartition(": ")
        if line.startswith(("L1 category scores", "L2 category scores")):
            section = official.setdefault("l1" if line.startswith("L1") else "l2", {})
        elif line.startswith("\t"):
            section[name] = _percent(path, value)
        elif name == "DPG-Bench score":
            official["overall"] = _percent(path, value)
    return official


def _percent(path: Path, value: str) -> float:
    try:
        score = float(value) / 100.0
    except ValueError as error:
        raise DataError(path, None, f"its summary has a score {value!r}") from error
    if not math.isfinite(score):
        raise DataError(path, None, f"its summary has a score {value!r}")
    return score


def _answers(path: Path, expected: Expected) -> Answers:
    answers: Answers = {}
    for row, line in enumerate(read_text(path).split("\n")):
        if not line.strip():
            continue
        match = _CROP.fullmatch(line)
        if match is None or int(match["x1"]) <= int(match["x0"]):
            raise DataError(path, row, f"is no answer of DPG-Bench: {line!r}")
        x, y, side = int(match["x0"]), int(match["y0"]), int(match["x1"]) - int(match["x0"])
        sample = y // side * 2 + x // side
        if sample >= expected.samples:
            raise DataError(path, row, f"is of sample {sample} of {expected.samples}")
        answers.setdefault(_key(match["path"]), {}).setdefault(sample, []).append(match["rest"])
    return answers


def _categories(
    items: dict[str, DPGQuestions], answers: Answers, scores: dict[str, list[float]], expected: Expected, path: Path
) -> dict[str, Category]:
    """Share of yes per category over all samples; an answer counts as it is, whatever its parents say."""
    asked = {key: items[key] for key in expected.prompts if key in items}
    sizes: dict[str, int] = {}
    for key in expected.prompts:
        if key not in asked:
            raise DataError(path, None, f"the questions have no {key}")
        for category in asked[key].categories:
            sizes[category] = sizes.get(category, 0) + expected.samples
    categories = {name: Category(size) for name, size in sorted(sizes.items())}
    for key, item in asked.items():
        if key not in scores:
            continue
        marks: dict[str, list[float]] = {}
        for sample, wanted in enumerate(scores[key]):
            lines = answers.get(key, {}).get(sample, [])
            posed, yes = item.match(lines)
            if posed is None or abs(posed.score(yes) - wanted) > 1e-9:
                raise DataError(path, None, f"the answers of {key}, sample {sample}, do not give its score {wanted}")
            for category, mark in zip(posed.categories, yes, strict=True):
                marks.setdefault(category, []).append(float(mark))
        for category, found in marks.items():
            categories[category].add(found)
    return categories
