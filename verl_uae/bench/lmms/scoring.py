# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Prompts and scores of the task files beside this module; lmms-eval calls these by name.

Rows are of ``lmms-lab-encoder/MMT-Benchmark``, ``lmms-lab-encoder/POPE`` and ``echo840/OCRBench`` as lmms-eval 0.7.3
reads them. Where these differ from lmms-eval's own tasks of the same benchmarks:

* an answer that names no choice is wrong and counted as ``unanswered``; there MMT-Bench draws a choice at random, and
  POPE takes "Yes." for a wrong answer;
* MMT-Bench has a score for each of its categories, so that a loss in ``ocr`` or ``doc_understanding`` shows;
* the yes ratio of POPE is that of the answers, there of the questions;
* OCRBench is a share of the rows seen; there the number of right ones, kept in a global, divided by 1000.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = "ABCDEFGHI"

#: A letter of its own: in parentheses, before punctuation or at the end of a line; "A cat" is no choice.
_CHOICE = re.compile(r"\(([A-I])\)|(?<![A-Za-z0-9'])([A-I])(?=[.:,;)!*]|\s*$)", re.MULTILINE)
_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)

#: Groups of OCRBench (https://arxiv.org/abs/2305.07895); what is not named here is text recognition.
OCR_GROUPS = {
    "Scene Text-centric VQA": "scene_vqa",
    "Doc-oriented VQA": "document_vqa",
    "Key Information Extraction": "key_information",
    "Handwritten Mathematical Expression Recognition": "handwritten_mathematics",
}
RECOGNITION = "recognition"

#: Data set within OCRBench whose answers are formulas: compared without spaces, and case counts.
_FORMULAS = "HME100k"


def visuals(doc: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row, in RGB."""
    found = doc["image"] if isinstance(doc["image"], list) else [doc["image"]]
    return [image.convert("RGB") for image in found]


def _prompt(text: str, settings: Mapping[str, Any] | None) -> str:
    settings = settings or {}
    return f"{settings.get('pre_prompt', '')}{text}{settings.get('post_prompt', '')}"


def question(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The question of a row of POPE or OCRBench."""
    return _prompt(doc["question"].strip(), lmms_eval_specific_kwargs)


def choices(doc: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the choices of a row of MMT-Bench, by letter."""
    return {letter: doc[letter].strip() for letter in LETTERS if (doc.get(letter) or "").strip()}


def mmt_question(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """Question and choices of a row of MMT-Bench."""
    lines = [doc["question"].strip(), *(f"{letter}: {text}" for letter, text in choices(doc).items())]
    return _prompt("\n".join(lines), lmms_eval_specific_kwargs)


def chosen(answer: str, letters: Sequence[str]) -> str | None:
    """The one choice that an answer names; None where it names none or several."""
    found = {match[1] or match[2] for match in _CHOICE.finditer(answer.strip())}
    return next(iter(found)) if len(found) == 1 and found <= set(letters) else None


def mmt_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores of one row of MMT-Bench: of all, and of its category."""
    choice = chosen(results[0], list(choices(doc)))
    score = float(choice is not None and choice == doc["answer"].strip())
    return {"accuracy": score, "unanswered": float(choice is None), str(doc["l2-category"]): score}


def yes_or_no(answer: str) -> str | None:
    """``yes`` or ``no`` as an answer begins; None where it begins with neither."""
    match = _YES_NO.match(answer)
    return None if match is None else match[1].lower()


def pope_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Scores of one row of POPE; a pair (answer, truth) for those over all rows."""
    said, truth = yes_or_no(results[0]), doc["answer"].strip().lower()
    pair = (said, truth)
    return {
        "accuracy": float(said == truth),
        "unanswered": float(said is None),
        "yes_ratio": float(said == "yes"),
        "precision": pair,
        "recall": pair,
        "f1": pair,
    }


def _hits(pairs: Sequence[Sequence[str | None]]) -> tuple[int, int, int]:
    """(right yes, all answers yes, all truths yes)."""
    right = sum(said == truth == "yes" for said, truth in pairs)
    return right, sum(said == "yes" for said, _ in pairs), sum(truth == "yes" for _, truth in pairs)


def precision(pairs: Sequence[Sequence[str | None]]) -> float:
    """Share of the answers yes that are right; 0 without any."""
    right, said, _ = _hits(pairs)
    return right / said if said else 0.0


def recall(pairs: Sequence[Sequence[str | None]]) -> float:
    """Share of the truths yes that were answered yes; 0 without any."""
    right, _, true = _hits(pairs)
    return right / true if true else 0.0


def f1(pairs: Sequence[Sequence[str | None]]) -> float:
    """Harmonic mean of precision and recall; 0 where both are."""
    right, said, true = _hits(pairs)
    return 2 * right / (said + true) if said + true else 0.0


def ocr_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores of one row of OCRBench: an accepted answer occurs in what was said."""
    accepted = doc["answer"] if isinstance(doc["answer"], list) else [doc["answer"]]
    exact = doc["dataset"] == _FORMULAS
    said = _folded(results[0], exact)
    score = float(any(_folded(text, exact) in said for text in accepted))
    return {"accuracy": score, OCR_GROUPS.get(doc["question_type"], RECOGNITION): score}


def _folded(text: str, exact: bool) -> str:
    text = text.strip().replace("\n", " ")
    if exact:
        return text.replace(" ", "")
    # Full-width forms of ASCII, as in Chinese text, and the ideographic space.
    folded = (chr(ord(c) - 0xFEE0) if 0xFF01 <= ord(c) <= 0xFF5E else " " if ord(c) == 0x3000 else c for c in text)
    return "".join(folded).lower()
