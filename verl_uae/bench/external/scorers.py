# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the scorers of GenEval, GenEval++ and DPG-Bench write, checked and read.

GenEval: ``results.jsonl`` of ``evaluation/evaluate_images.py`` (https://github.com/djghosh13/geneval, commit af4902f):
one line per picture with ``filename``, ``tag``, ``prompt``, ``correct``, ``reason``, ``metadata``; the overall score of
``summary_scores.py`` is the mean over tags of the share of correct pictures. A picture that does not exist is not
noticed there.

GenEval++: ``Output.json`` of ``test_scripts/Eval-gpt-4.1-geneval++.py`` (https://github.com/yejy53/Echo-4o, commit
28f36d7): ``overall_results`` with ``id`` (from 1), ``tag``, ``prompt`` and ``result`` (``correct`` 1 or 0, or -1 where
the judge's answer could not be read), and accuracies rounded to four digits. A picture that is not there and an answer
that was not read count as wrong in these.

DPG-Bench: the ``*_results.txt`` of ``dpg_bench/compute_dpg_bench.py`` (https://github.com/TencentQQGYLab/ELLA, commit
3c228f1), its answers, and their questions. ``dpg_bench.csv`` has one question per line, each with the questions it
depends on. ``X.txt`` has a line ``path, scores of samples, mean`` for each prompt and then the summary;
``X_detail.txt`` has a line ``path, crop, question, answer`` for each question. Categories are those of the answers:
the scorer's own are over the last sample of a prompt (its issue 60), and with several processes mixed up. It leaves out
the first question of the CSV, so a prompt whose other questions depend on it has no score (issue 61).
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from verl_uae.bench.external.prompts import DRAWN_PROMPT, ORIGINAL, REWRITTEN, PromptSet
from verl_uae.bench.external.result import Category, Finding, mean_over_categories
from verl_uae.bench.results import interval, read_text
from verl_uae.errors import DataError

GENEVAL_RULE = "mean over tags of the share of correct pictures"
GENEVALPP_RULE = f"{GENEVAL_RULE}; pictures without a verdict are left out"
DPG_RULE = "mean over prompts of the mean over samples of the share of questions answered yes, parents included"

#: What the scorer of GenEval++ writes for a picture that is not there.
NOT_FOUND = "Image not found"

#: It rounds accuracies, and their mean once more.
_ROUNDING = 1.01e-4

#: First prompt of ``dpg_bench.csv``, of whose questions the scorer leaves out the one the others depend on.
UNSCORABLE = "partiprompts97"

#: Folder and sample of a picture of GenEval; the number of digits is free, as for the scorer.
_NAME = re.compile(r"(?:^|/)(\d+)/samples/(\d+)\.png")
_CROP = re.compile(r"(?P<path>.*?), \((?P<x0>\d+), (?P<y0>\d+), (?P<x1>\d+), (?P<y1>\d+)\), (?P<rest>.*)")


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers."""
    return [(row, line) for row, line in enumerate(read_text(path).split("\n")) if line.strip()]


def _by_tag(expected: PromptSet, scores: Mapping[str, Sequence[float]]) -> dict[str, Category]:
    """Categories by tag, from the scores of each prompt that has any."""
    sizes = Counter(str(prompt.tag) for prompt in expected.prompts.values())
    categories = {tag: Category(size * expected.samples) for tag, size in sizes.items()}
    for key, prompt in expected.prompts.items():
        categories[str(prompt.tag)].add(scores.get(key, ()))
    return categories


def read_geneval(path: Path, expected: PromptSet, seed: int = 0) -> Finding:
    """Read a ``results.jsonl``.

    Raises:
        DataError: a line is no result, occurs twice, or belongs to another prompt than expected.
    """
    verdicts = _verdicts(path, expected)
    scores = {key: [float(found[sample]) for sample in sorted(found)] for key, found in verdicts.items()}
    categories = _by_tag(expected, scores)
    missing = [
        {"what": f"{key}/samples/{sample:04d}.png", "reason": "not in the results"}
        for key in expected.prompts
        for sample in range(expected.samples)
        if sample not in verdicts.get(key, {})
    ]
    overall, bounds = mean_over_categories(categories, seed)
    points = [score for found in scores.values() for score in found]
    official = {
        "overall": overall,
        "correct_pictures": sum(points) / len(points) if points else None,
        # Prompts of which at least one sample is correct.
        "correct_prompts": sum(map(any, scores.values())) / max(1, len(scores)),
        "pictures": len(points),
        "prompts": len(scores),
    }
    return Finding(categories, overall, bounds, GENEVAL_RULE, official, len(points), missing)


def _verdicts(path: Path, expected: PromptSet) -> dict[str, dict[int, bool]]:
    """By prompt and number of the sample."""
    by_number = {int(key): key for key in expected.prompts}
    verdicts: dict[str, dict[int, bool]] = {}
    for row, (_, line) in enumerate(_lines(path)):
        try:
            entry = json.loads(line)
            match = _NAME.search(str(entry["filename"]).replace("\\", "/"))
            correct, tag, text = entry["correct"], entry["tag"], entry["prompt"]
            drawn = json.loads(entry["metadata"]).get(DRAWN_PROMPT)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(path, row, f"is no result of GenEval: {error}") from error
        if match is None or not isinstance(correct, bool):
            raise DataError(path, row, "is no result of GenEval: a file name or a verdict is of another form")
        key, sample = by_number.get(int(match[1]), ""), int(match[2])
        prompt = expected.prompts.get(key)
        if prompt is None or (prompt.tag, prompt.text) != (tag, text):
            raise DataError(path, row, f"{match[0]} is of a prompt that is not in the set: {text!r}")
        # The metadata of pictures drawn here says what was drawn; that of other programs says nothing.
        if drawn is not None and expected.name == ORIGINAL:
            raise DataError(path, row, f"is of a {REWRITTEN} prompt, in a result of {ORIGINAL} ones")
        told = drawn is not None or (expected.name != ORIGINAL and expected.source["drawing"] is not None)
        # Where only --prompt-set says that texts were rewritten, they are not at hand.
        if told and expected.source["rewritten"] is not None and (drawn or text) != prompt.drawn:
            raise DataError(path, row, "is of another rewritten prompt than expected")
        if sample >= expected.samples:
            raise DataError(path, row, f"{match[0]} is more than {expected.samples} samples of a prompt")
        if sample in verdicts.setdefault(key, {}):
            raise DataError(path, row, f"{match[0]} occurs twice")
        verdicts[key][sample] = correct
    return verdicts


def read_genevalpp(path: Path, expected: PromptSet, seed: int = 0) -> Finding:
    """Read an ``Output.json``.

    Raises:
        DataError: the file is no such result, an entry occurs twice or belongs to another prompt than expected, or the
            accuracies in the file do not follow from its entries.
    """
    try:
        content = json.loads(read_text(path))
        found = list(content["overall_results"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(path, None, f"is no result of GenEval++: {error}") from error
    results: dict[str, Any] = {}
    for row, entry in enumerate(found):
        try:
            key, tag, text, result = str(entry["id"]), entry["tag"], entry["prompt"], entry["result"]
        except (KeyError, TypeError) as error:
            raise DataError(path, row, f"is no result of GenEval++: {error}") from error
        prompt = expected.prompts.get(key)
        if prompt is None or (prompt.tag, prompt.text.strip()) != (tag, text):
            raise DataError(path, row, f"{key} is of a prompt that is not in the set: {text!r}")
        if key in results:
            raise DataError(path, row, f"{key} occurs twice")
        results[key] = result
    scores: dict[str, list[float]] = {}
    missing = []
    for key in expected.prompts:
        result = results.get(key)
        about = result if isinstance(result, dict) else {}
        correct, reason = about.get("correct"), str(about.get("reason", ""))
        if reason != NOT_FOUND and isinstance(correct, bool | int | float) and correct in (0, 1):
            scores[key] = [float(correct)]
        else:
            why = reason or f"no verdict: {result!r}" if key in results else "not in the results"
            missing.append({"what": f"{key}.jpg", "reason": why})
    categories = _by_tag(expected, scores)
    overall, bounds = mean_over_categories(categories, seed)
    official = _official(path, content, [(str(expected.prompts[key].tag), result) for key, result in results.items()])
    return Finding(categories, overall, bounds, GENEVALPP_RULE, official, len(scores), missing)


def _official(path: Path, content: Mapping[str, Any], results: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The accuracies in the file, after a check that they follow from its entries, here tags and results."""
    right: dict[str, list[bool]] = {}
    for tag, result in results:
        right.setdefault(tag, []).append(isinstance(result, dict) and result.get("correct", 0) == 1)
    ours = {tag: sum(marks) / len(marks) for tag, marks in right.items()}
    theirs, overall = content.get("tag_accuracy"), content.get("overall_score_mean_of_tags")
    if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
        raise DataError(path, None, "its tag_accuracy is not of the tags of its overall_results")
    mean = sum(ours.values()) / len(ours) if ours else 0.0
    said = [(f"accuracy of {tag}", theirs[tag], ours[tag]) for tag in ours] + [("overall score", overall, mean)]
    for what, found, wanted in said:
        # NaN is near nothing.
        if not (isinstance(found, int | float) and abs(found - wanted) <= _ROUNDING):
            raise DataError(path, None, f"its {what} is {found}, its entries give {wanted:.4f}")
    return {
        "overall": overall,
        "tag_accuracy": theirs,
        "overall_accuracy_all_samples": content.get("overall_accuracy_all_samples"),
        "pictures": len(results),
    }


@dataclass(frozen=True, slots=True)
class DPGQuestion:
    """One question about a picture."""

    number: int
    text: str
    category: str
    """First level: entity, attribute, relation, global, other."""
    parents: tuple[int, ...]
    """Numbers of questions without whose yes a yes does not count."""


def posed(questions: Sequence[DPGQuestion], lines: Sequence[str]) -> dict[DPGQuestion, bool]:
    """The questions that were posed, and whether each was answered yes; none where the lines are not about them.

    Lines are ``question, answer`` in the order posed. The first question of the whole file is not posed by the scorer
    as published, so lines that begin with the second are accepted.
    """
    for asked in (questions, questions[1:]):
        if len(asked) == len(lines):
            pairs = list(zip(asked, lines, strict=True))
            if all(line.startswith(f"{question.text}, ") for question, line in pairs):
                return {question: line[len(question.text) + 2 :] == "yes" for question, line in pairs}
    return {}


def score(answers: Mapping[DPGQuestion, bool]) -> float:
    """Share of questions answered yes, where a question with a failed parent has failed itself.

    A question that is not there fails nothing. Questions come in order: a parent that failed for its own parent fails
    its children if it comes before them.
    """
    passed = {question.number: answer for question, answer in answers.items()}
    for question in answers:
        passed[question.number] &= all(passed.get(parent, True) for parent in question.parents)
    return sum(passed.values()) / len(passed)


def read_questions(path: str | os.PathLike[str]) -> dict[str, list[DPGQuestion]]:
    """The questions of ``dpg_bench.csv`` in order, by ``item_id``, which is the stem of the prompt's file.

    Raises:
        DataError: a line has no item, number, question, category or dependency.
    """
    found: dict[str, list[DPGQuestion]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(path, None, f"cannot be read: {error}") from error
    for row, line in enumerate(lines):
        try:
            parents = tuple(int(text) for text in line["dependency"].split(",") if int(text) != 0)
            category = line["tuple"].split("(")[0].split("-")[0].strip()
            question = DPGQuestion(int(line["proposition_id"]), line["question_natural_language"], category, parents)
            found.setdefault(line["item_id"], []).append(question)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise DataError(path, row, f"is no question of DPG-Bench: {error!r}") from error
    if not found:
        raise DataError(path, None, "has no questions")
    return found


def read_dpg(path: Path, expected: PromptSet, seed: int = 0, questions: Path | None = None) -> Finding:
    """Read a ``*_results.txt``.

    With ``dpg_bench.csv`` and the ``_detail.txt`` beside the file, scores per category are computed from the answers,
    and the scores in the file are checked against them.

    Raises:
        DataError: a file is no such result, an entry occurs twice or is not expected, or scores do not follow from the
            answers.
    """
    scores, official = _scores(path, expected)
    overall = Category(len(expected.prompts) * expected.samples)
    missing, notes = [], []
    for key in expected.prompts:
        overall.add(scores.get(key, ()))
        if key not in scores and key == UNSCORABLE:
            notes.append(f"{key} has no score: the scorer leaves out its first question (its issue 61)")
        elif key not in scores:
            missing.append({"what": f"{key}.png", "reason": "not in the results"})
    categories: dict[str, Category] = {}
    if questions is None:
        notes.append("categories are the scorer's own, over the last sample of each prompt: pass --questions")
    elif not detail_of(path).is_file():
        raise DataError(detail_of(path), None, "the answers are missing, so --questions has nothing to go with")
    else:
        categories = _categories(read_questions(questions), scores, expected, detail_of(path))
    bounds = interval(overall.resampled(seed, "dpg")) if overall.counts else None
    return Finding(categories, overall.score, bounds, DPG_RULE, official, sum(overall.counts), missing, notes)


def detail_of(path: Path) -> Path:
    """The file of answers beside a file of results."""
    return Path(str(path).replace(".txt", "_detail.txt"))


def _key(image: str) -> str:
    return PurePosixPath(image.replace("\\", "/")).name.split(".")[0]


def _scores(path: Path, expected: PromptSet) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Scores of the samples by prompt; and those of the summary, empty where the scorer did not come to its end."""
    scores: dict[str, list[float]] = {}
    official: dict[str, Any] = {}
    section: dict[str, float] = {}
    ended = False
    for row, line in _lines(path):
        ended = ended or line.startswith("Model: ")
        name, _, value = line.strip().rpartition(": ")
        if not ended:
            key, found = _sample_scores(path, row, line, expected)
            if key in scores:
                raise DataError(path, row, f"{key} occurs twice")
            scores[key] = found
        elif line.startswith(("L1 category scores", "L2 category scores")):
            section = official.setdefault(line[:2].lower(), {})
        elif line.startswith("\t"):
            section[name] = _percent(path, value)
        elif name == "DPG-Bench score":
            official["overall"] = _percent(path, value)
    return scores, official


def _sample_scores(path: Path, row: int, line: str, expected: PromptSet) -> tuple[str, list[float]]:
    cells = line.rsplit(", ", expected.samples + 1)
    try:
        *found, mean = map(float, cells[1:])
    except ValueError as error:
        raise DataError(path, row, f"is no result of DPG-Bench: {error}") from error
    shares = all(0.0 <= score <= 1.0 for score in found)
    if len(found) != expected.samples or not shares or abs(sum(found) / len(found) - mean) > 1e-9:
        raise DataError(path, row, f"is no result of {expected.samples} samples: {line!r}")
    if _key(cells[0]) not in expected.prompts:
        raise DataError(path, row, f"{_key(cells[0])} is no prompt of the set")
    return _key(cells[0]), found


def _percent(path: Path, value: str) -> float:
    try:
        score = float(value) / 100.0
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(path, None, f"its summary has a score {value!r}")
    return score


def _categories(
    questions: Mapping[str, Sequence[DPGQuestion]],
    scores: Mapping[str, Sequence[float]],
    expected: PromptSet,
    path: Path,
) -> dict[str, Category]:
    """Share of yes per category over all samples; an answer counts as it is, whatever its parents say."""
    answers: dict[tuple[str, int], list[str]] = {}
    for row, line in _lines(path):
        match = _CROP.fullmatch(line)
        if match is None or int(match["x1"]) <= int(match["x0"]):
            raise DataError(path, row, f"is no answer of DPG-Bench: {line!r}")
        x, y, side = int(match["x0"]), int(match["y0"]), int(match["x1"]) - int(match["x0"])
        sample = y // side * 2 + x // side
        if sample >= expected.samples:
            raise DataError(path, row, f"is of sample {sample} of {expected.samples}")
        answers.setdefault((_key(match["path"]), sample), []).append(match["rest"])
    unknown = [key for key in expected.prompts if key not in questions]
    if unknown:
        raise DataError(path, None, f"the questions have no {unknown[0]}")
    sizes = Counter(question.category for key in expected.prompts for question in questions[key])
    categories = {name: Category(size * expected.samples) for name, size in sorted(sizes.items())}
    for key in (key for key in expected.prompts if key in scores):
        marks: dict[str, list[float]] = {}
        for sample, wanted in enumerate(scores[key]):
            found = posed(questions[key], answers.get((key, sample), []))
            if not found or abs(score(found) - wanted) > 1e-9:
                raise DataError(path, None, f"the answers of {key}, sample {sample}, do not give its score {wanted}")
            for question, answer in found.items():
                marks.setdefault(question.category, []).append(float(answer))
        for category, values in marks.items():
            categories[category].add(values)
    return categories
