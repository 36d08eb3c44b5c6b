# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results of GenEval and GenEval++.

GenEval: ``results.jsonl`` of ``evaluation/evaluate_images.py`` (https://github.com/djghosh13/geneval, commit af4902f):
one line per picture with ``filename``, ``tag``, ``prompt``, ``correct``, ``reason``, ``metadata``; the overall score of
``summary_scores.py`` is the mean over tags of the share of correct pictures. A picture that does not exist is not
noticed there.

GenEval++: ``Output.json`` of ``test_scripts/Eval-gpt-4.1-geneval++.py`` (https://github.com/yejy53/Echo-4o, commit
28f36d7): ``overall_results`` with ``id`` (from 1), ``tag``, ``prompt`` and ``result`` (``correct`` 1 or 0, or -1 where
the judge's answer could not be read), and accuracies rounded to four digits. A picture that is not there and an answer
that was not read count as wrong in these.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from verl_uae.bench.external.prompts import DRAWN_PROMPT, ORIGINAL, REWRITTEN
from verl_uae.bench.external.result import Category, Expected, Finding, mean_over_categories
from verl_uae.bench.results import read_text
from verl_uae.errors import DataError

GENEVAL_RULE = "mean over tags of the share of correct pictures"
GENEVALPP_RULE = "mean over tags of the share of correct pictures; pictures without a verdict are left out"

#: What the scorer writes for a picture that is not there.
NOT_FOUND = "Image not found"

#: The scorer rounds accuracies, and their mean once more.
_ROUNDING = 1.01e-4

#: Folder and sample; the number of digits is free, as for the scorer.
_NAME = re.compile(r"(?:^|/)(\d+)/samples/(\d+)\.png")


def read_geneval(path: str | os.PathLike[str], expected: Expected, seed: int = 0) -> Finding:
    """Read a ``results.jsonl``.

    Args:
        path: the file.
        expected: the prompts, and samples per prompt.
        seed: of the bootstrap.

    Raises:
        DataError: a line is no result, occurs twice, or belongs to another prompt than expected.
    """
    verdicts = _verdicts(Path(path), expected)
    tags = list(dict.fromkeys(str(prompt.tag) for prompt in expected.prompts.values()))
    sizes = {tag: sum(prompt.tag == tag for prompt in expected.prompts.values()) for tag in tags}
    categories = {tag: Category(expected.samples * sizes[tag]) for tag in tags}
    missing = []
    for key, prompt in expected.prompts.items():
        found = verdicts.get(int(key), {})
        categories[str(prompt.tag)].add([found[sample] for sample in sorted(found)])
        missing += [
            {"what": f"{key}/samples/{sample:04d}.png", "reason": "not in the results"}
            for sample in range(expected.samples)
            if sample not in found
        ]
    overall, bounds = mean_over_categories(categories, seed)
    points = [score for found in verdicts.values() for score in found.values()]
    official = {
        "overall": overall,
        "correct_pictures": sum(points) / len(points) if points else None,
        # Prompts of which at least one sample is correct.
        "correct_prompts": sum(any(found.values()) for found in verdicts.values()) / max(1, len(verdicts)),
        "pictures": len(points),
        "prompts": len(verdicts),
    }
    return Finding(categories, overall, bounds, GENEVAL_RULE, official, len(points), missing)


def _verdicts(path: Path, expected: Expected) -> dict[int, dict[int, float]]:
    """1 or 0 by number of the prompt and of the sample."""
    by_number = {int(key): prompt for key, prompt in expected.prompts.items()}
    verdicts: dict[int, dict[int, float]] = {}
    for row, line in enumerate(line for line in read_text(path).split("\n") if line.strip()):
        try:
            entry = json.loads(line)
            match = _NAME.search(str(entry["filename"]).replace("\\", "/"))
            correct, tag, text = entry["correct"], entry["tag"], entry["prompt"]
            drawn = json.loads(entry["metadata"]).get(DRAWN_PROMPT)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(path, row, f"is no result of GenEval: {error}") from error
        if match is None or not isinstance(correct, bool):
            raise DataError(path, row, "is no result of GenEval: a file name or a verdict is of another form")
        number, sample = int(match[1]), int(match[2])
        prompt = by_number.get(number)
        if prompt is None or (prompt.tag, prompt.text) != (tag, text):
            raise DataError(path, row, f"{match[0]} is of a prompt that is not in the set: {text!r}")
        _check_drawn(path, row, drawn, prompt.drawn, prompt.text, expected)
        if sample >= expected.samples:
            raise DataError(path, row, f"{match[0]} is more than {expected.samples} samples of a prompt")
        if sample in verdicts.setdefault(number, {}):
            raise DataError(path, row, f"{match[0]} occurs twice")
        verdicts[number][sample] = float(correct)
    return verdicts


def _check_drawn(path: Path, row: int, drawn: Any, wanted: str, text: str, expected: Expected) -> None:
    """The metadata of pictures drawn here says what was drawn; that of other programs says nothing."""
    if drawn is None and expected.prompt_set == ORIGINAL:
        return
    if drawn is None and expected.source["drawing"] is None:
        return
    if drawn is not None and expected.prompt_set == ORIGINAL:
        raise DataError(path, row, f"is of a {REWRITTEN} prompt, in a result of {ORIGINAL} ones")
    # Where only --prompt-set says so, the texts are not at hand.
    if expected.source["rewritten"] is not None and (drawn or text) != wanted:
        raise DataError(path, row, "is of another rewritten prompt than expected")


def read_genevalpp(path: str | os.PathLike[str], expected: Expected, seed: int = 0) -> Finding:
    """Read an ``Output.json``.

    Args:
        path: the file.
        expected: the prompts.
        seed: of the bootstrap.

    Raises:
        DataError: the file is no such result, an entry occurs twice or belongs to another prompt than expected, or the
            accuracies in the file do not follow from its entries.
    """
    path = Path(path)
    content, entries = _entries(path, expected)
    tags = list(dict.fromkeys(str(prompt.tag) for prompt in expected.prompts.values()))
    categories = {tag: Category(sum(prompt.tag == tag for prompt in expected.prompts.values())) for tag in tags}
    missing = []
    for key, prompt in expected.prompts.items():
        verdict, reason = _verdict(entries.get(key))
        if verdict is None:
            missing.append({"what": f"{key}.jpg", "reason": reason})
        else:
            categories[str(prompt.tag)].add([verdict])
    overall, bounds = mean_over_categories(categories, seed)
    scored = len(expected.prompts) - len(missing)
    return Finding(categories, overall, bounds, GENEVALPP_RULE, _official(path, content, entries), scored, missing)


def _entries(path: Path, expected: Expected) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The file, and its results by key."""
    try:
        content = json.loads(read_text(path))
        found = list(content["overall_results"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(path, None, f"is no result of GenEval++: {error}") from error
    entries: dict[str, dict[str, Any]] = {}
    for row, entry in enumerate(found):
        try:
            key, tag, text, result = str(entry["id"]), entry["tag"], entry["prompt"], entry["result"]
        except (KeyError, TypeError) as error:
            raise DataError(path, row, f"is no result of GenEval++: {error}") from error
        prompt = expected.prompts.get(key)
        if prompt is None or (prompt.tag, prompt.text.strip()) != (tag, text):
            raise DataError(path, row, f"{key} is of a prompt that is not in the set: {text!r}")
        if key in entries:
            raise DataError(path, row, f"{key} occurs twice")
        entries[key] = {"tag": tag, "result": result}
    return content, entries


def _verdict(entry: dict[str, Any] | None) -> tuple[float | None, str]:
    if entry is None:
        return None, "not in the results"
    result = entry["result"]
    correct = result.get("correct") if isinstance(result, dict) else None
    reason = str(result.get("reason", "")) if isinstance(result, dict) else ""
    if reason == NOT_FOUND:
        return None, NOT_FOUND
    if isinstance(correct, bool | int | float) and correct in (0, 1):
        return float(correct), ""
    return None, reason or f"no verdict: {result!r}"


def _official(path: Path, content: dict[str, Any], entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The accuracies in the file, after a check that they follow from its entries."""
    right: dict[str, list[bool]] = {}
    for entry in entries.values():
        result = entry["result"]
        right.setdefault(entry["tag"], []).append(isinstance(result, dict) and result.get("correct", 0) == 1)
    ours = {tag: sum(marks) / len(marks) for tag, marks in right.items()}
    theirs = content.get("tag_accuracy")
    if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
        raise DataError(path, None, "its tag_accuracy is not of the tags of its overall_results")
    for tag, accuracy in ours.items():
        if not _near(theirs[tag], accuracy):
            raise DataError(path, None, f"its accuracy of {tag} is {theirs[tag]}, its entries give {accuracy:.4f}")
    overall = content.get("overall_score_mean_of_tags")
    mean = sum(ours.values()) / len(ours) if ours else 0.0
    if not _near(overall, mean):
        raise DataError(path, None, f"its overall score is {overall}, its entries give {mean:.4f}")
    return {
        "overall": overall,
        "tag_accuracy": theirs,
        "overall_accuracy_all_samples": content.get("overall_accuracy_all_samples"),
        "pictures": len(entries),
    }


def _near(found: object, wanted: float) -> bool:
    """Whether a value of the file is that number, rounded; NaN is near nothing."""
    return isinstance(found, int | float) and abs(found - wanted) <= _ROUNDING
