# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results of GenEval++: ``Output.json`` of ``test_scripts/Eval-gpt-4.1-geneval++.py``.

Source: https://github.com/yejy53/Echo-4o, commit 28f36d7: ``overall_results`` with ``id`` (from 1), ``tag``,
``prompt`` and ``result`` (``correct`` 1 or 0, or -1 where the judge's answer could not be read), and accuracies
rounded to four digits. A picture that is not there and an answer that was not read count as wrong in these.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from verl_uae.bench.external.expected import Expected
from verl_uae.bench.external.result import Category, Finding, mean_over_categories, read_text
from verl_uae.errors import DataError

RULE = "mean over tags of the share of correct pictures; pictures without a verdict are left out"

#: What the scorer writes for a picture that is not there.
NOT_FOUND = "Image not found"

#: The scorer rounds accuracies, and their mean once more.
_ROUNDING = 1.01e-4


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
    return Finding(categories, overall, bounds, RULE, _official(path, content, entries), scored, missing)


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
