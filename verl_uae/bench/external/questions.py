# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Questions of DPG-Bench: ``dpg_bench.csv``, one per line, each with the questions it depends on.

Source: https://github.com/TencentQQGYLab/ELLA, commit 3c228f1, ``dpg_bench/compute_dpg_bench.py``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_uae.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a picture."""

    number: int
    text: str
    category: str
    """First level: entity, attribute, relation, global, other."""
    parents: tuple[int, ...]
    """Numbers of questions without whose yes a yes does not count."""


@dataclass(frozen=True, slots=True)
class Item:
    """The questions of one prompt, in order."""

    questions: tuple[Question, ...]

    @property
    def categories(self) -> list[str]:
        """Of each question."""
        return [question.category for question in self.questions]

    def match(self, lines: Sequence[str]) -> tuple[Item | None, list[bool]]:
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
                return Item(posed), [answer == "yes" for answer in answers]
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


def read_questions(path: str | os.PathLike[str]) -> dict[str, Item]:
    """Read ``dpg_bench.csv``.

    Returns:
        Items by ``item_id``, which is the stem of the prompt's file.

    Raises:
        DataError: a line has no item, number, question, category or dependency.
    """
    found: dict[str, list[Question]] = {}
    try:
        with open(Path(path), encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(Path(path), None, f"cannot be read: {error}") from error
    for row, line in enumerate(lines):
        try:
            parents = tuple(int(text) for text in line["dependency"].split(",") if int(text) != 0)
            category = line["tuple"].split("(")[0].split("-")[0].strip()
            question = Question(int(line["proposition_id"]), line["question_natural_language"], category, parents)
            found.setdefault(line["item_id"], []).append(question)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise DataError(Path(path), row, f"is no question of DPG-Bench: {error!r}") from error
    if not found:
        raise DataError(Path(path), None, "has no questions")
    return {key: Item(tuple(questions)) for key, questions in found.items()}
