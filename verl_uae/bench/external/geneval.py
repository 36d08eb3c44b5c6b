# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results of GenEval: ``results.jsonl`` of ``evaluation/evaluate_images.py``.

Source: https://github.com/djghosh13/geneval, commit af4902f: one line per picture with ``filename``, ``tag``,
``prompt``, ``correct``, ``reason``, ``metadata``; the overall score of ``summary_scores.py`` is the mean over tags of
the share of correct pictures. A picture that does not exist is not noticed there.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from verl_uae.bench.external.expected import Expected
from verl_uae.bench.external.layout import DRAWN_PROMPT
from verl_uae.bench.external.prompts import ORIGINAL, REWRITTEN
from verl_uae.bench.external.result import Category, Finding, mean_over_categories, read_text
from verl_uae.errors import DataError

RULE = "mean over tags of the share of correct pictures"

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
    return Finding(categories, overall, bounds, RULE, official, len(points), missing)


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
