# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.bench.external.outputs import questions_file
from verl_uae.bench.external.questions import read_questions
from verl_uae.errors import DataError


def test_questions_and_what_they_depend_on(tmp_path: Path) -> None:
    items = read_questions(questions_file(tmp_path / "dpg_bench.csv"))
    assert set(items) == {"partiprompts97", "10", "2"}
    assert items["10"].categories == ["entity", "attribute", "relation", "global"]
    assert [question.parents for question in items["10"].questions] == [(), (1,), (1, 2), ()]


def test_the_score_is_that_of_a_recursion(tmp_path: Path) -> None:
    """A question passes if it and all its ancestors were answered yes."""
    item = read_questions(questions_file(tmp_path / "dpg_bench.csv"))["10"]
    parents = {1: [], 2: [1], 3: [1, 2], 4: []}

    def passes(number: int, yes: tuple[bool, ...]) -> bool:
        return yes[number - 1] and all(passes(parent, yes) for parent in parents[number])

    for yes in itertools.product([False, True], repeat=4):
        assert item.score(yes) == sum(passes(number, yes) for number in parents) / 4


def test_answers_are_matched_with_or_without_the_first_question(tmp_path: Path) -> None:
    item = read_questions(questions_file(tmp_path / "dpg_bench.csv"))["10"]
    replies = ["yes", "no", "yes", "yes"]
    lines = [f"{question.text}, {reply}" for question, reply in zip(item.questions, replies, strict=True)]
    assert item.match(lines) == (item, [True, False, True, True])
    posed, yes = item.match(lines[1:])
    assert posed is not None and yes == [False, True, True] and posed.score(yes) == 1 / 3
    for wrong in (lines[:3], lines[2:], [], [lines[1], lines[0], *lines[2:]]):
        assert item.match(wrong) == (None, [])
    assert item.match([f"{lines[0]}, it is", *lines[1:]])[1][0] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id,proposition_id\na,1\n", "row 0: is no question"),
        ("item_id,proposition_id,dependency,tuple,question_natural_language\na,1,x,entity (y),Q?\n", "row 0"),
        ("item_id\n", "has no questions"),
    ],
)
def test_another_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "bad.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "nowhere.csv")
