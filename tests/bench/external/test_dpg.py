# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.bench.external.outputs import QUESTIONS, dpg_files, expect, questions_file
from verl_uae.bench.external.scorers import detail_of, posed, read_dpg, read_questions, score
from verl_uae.errors import DataError


def test_questions_and_what_they_depend_on(tmp_path: Path) -> None:
    items = read_questions(questions_file(tmp_path / "dpg_bench.csv"))
    assert set(items) == {"partiprompts97", "10", "2"}
    assert [question.category for question in items["10"]] == ["entity", "attribute", "relation", "global"]
    assert [question.parents for question in items["10"]] == [(), (1,), (1, 2), ()]


def test_the_score_is_that_of_a_recursion(tmp_path: Path) -> None:
    """A question passes if it and all its ancestors were answered yes."""
    item = read_questions(questions_file(tmp_path / "dpg_bench.csv"))["10"]
    parents = {1: [], 2: [1], 3: [1, 2], 4: []}

    def passes(number: int, yes: tuple[bool, ...]) -> bool:
        return yes[number - 1] and all(passes(parent, yes) for parent in parents[number])

    for yes in itertools.product([False, True], repeat=4):
        assert score(dict(zip(item, yes, strict=True))) == sum(passes(number, yes) for number in parents) / 4


def test_answers_are_matched_with_or_without_the_first_question(tmp_path: Path) -> None:
    item = read_questions(questions_file(tmp_path / "dpg_bench.csv"))["10"]
    replies = ["yes", "no", "yes", "yes"]
    lines = [f"{question.text}, {reply}" for question, reply in zip(item, replies, strict=True)]
    assert posed(item, lines) == dict(zip(item, [True, False, True, True], strict=True))
    found = posed(item, lines[1:])
    assert found == dict(zip(item[1:], [False, True, True], strict=True)) and score(found) == 1 / 3
    for wrong in (lines[:3], lines[2:], [], [lines[1], lines[0], *lines[2:]]):
        assert posed(item, wrong) == {}
    assert posed(item, [f"{lines[0]}, it is", *lines[1:]])[item[0]] is False


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


PROMPTS: dict[str, tuple[None, str]] = {"10": (None, "a red circle"), "2": (None, "green triangle")}
YES, NO = "yes", "no"

#: By prompt, sample and question; what each sample scores is worked out below.
ANSWERS = {
    "10": [(YES, YES, YES, YES), (NO, YES, YES, YES), (YES, NO, YES, NO), (YES, YES, NO, YES)],
    "2": [(YES, YES), (NO, YES), (YES, "yes, it is"), (NO, NO)],
}
#: 10: all; only the photo; only the circle; all but the relation. 2: both; none; one; none.
SCORES = {"10": [1.0, 0.25, 0.25, 0.75], "2": [1.0, 0.0, 0.5, 0.0]}


def files(tmp_path: Path, **changes: Any) -> Path:
    return dpg_files(tmp_path / "dpg_results.txt", **({"scores": SCORES, "answers": ANSWERS} | changes))


def test_scores_by_hand(tmp_path: Path) -> None:
    found = read_dpg(files(tmp_path), expect("dpg", PROMPTS, 4), questions=questions_file(tmp_path / "q.csv"))
    assert found.overall == (2.25 / 4 + 1.5 / 4) / 2 and found.scored == 8 and found.missing == []
    scores = {name: (category.score, category.expected) for name, category in found.categories.items()}
    # Answers as they are, over all samples: circles 3 and triangles 2 of 4, colours 3 and sizes 2.
    assert scores == {"entity": (5 / 8, 8), "attribute": (5 / 8, 8), "relation": (3 / 4, 4), "global": (3 / 4, 4)}
    assert found.official == {
        "l1": {"entity": 0.75, "global": 0.5},
        "l2": {"entity - whole": 0.75},
        "overall": 0.5,
    }
    assert found.notes == []


def test_without_questions_the_categories_are_the_scorers_own(tmp_path: Path) -> None:
    found = read_dpg(files(tmp_path, answers=None), expect("dpg", PROMPTS, 4))
    assert found.categories == {} and "last sample" in found.notes[0] and found.overall == 0.46875
    assert found.overall_interval is not None
    low, high = found.overall_interval
    # Two prompts: the resampled means are those of one, of both, or of the other.
    assert (low, high) == (1.5 / 4, 2.25 / 4)
    with pytest.raises(DataError, match="the answers are missing"):
        read_dpg(tmp_path / "dpg_results.txt", expect("dpg", PROMPTS, 4), questions=questions_file(tmp_path / "q.csv"))


def test_line_ends_of_windows_are_line_ends(tmp_path: Path) -> None:
    path, questions = files(tmp_path), questions_file(tmp_path / "q.csv")
    whole = read_dpg(path, expect("dpg", PROMPTS, 4), questions=questions)
    for name in (path, detail_of(path)):
        name.write_bytes(name.read_bytes().replace(b"\n", b"\r\n"))
    assert read_dpg(path, expect("dpg", PROMPTS, 4), questions=questions) == whole


def test_one_sample_per_prompt(tmp_path: Path) -> None:
    path = dpg_files(
        tmp_path / "one_results.txt", {"10": [0.25], "2": [1.0]}, {"10": [ANSWERS["10"][1]], "2": [ANSWERS["2"][0]]}
    )
    found = read_dpg(path, expect("dpg", PROMPTS, 1), questions=questions_file(tmp_path / "q.csv"))
    assert found.overall == 0.625 and found.categories["entity"].score == 0.5
    with pytest.raises(DataError, match="row 0: is no result"):
        read_dpg(path, expect("dpg", PROMPTS, 4))


def test_a_missing_prompt_makes_it_incomplete_and_a_fault_of_the_scorer_does_not(tmp_path: Path) -> None:
    prompts = PROMPTS | {"partiprompts97": (None, "a corgi"), "7": (None, "seven")}
    found = read_dpg(files(tmp_path), expect("dpg", prompts, 4))
    assert found.missing == [{"what": "7.png", "reason": "not in the results"}]
    assert "partiprompts97 has no score" in found.notes[0] and found.scored == 8
    # A repaired scorer gives it one.
    answers = ANSWERS | {"partiprompts97": [(YES, YES)] * 4}
    path = files(tmp_path, scores=SCORES | {"partiprompts97": [1.0] * 4}, answers=answers)
    complete = read_dpg(
        path,
        expect("dpg", PROMPTS | {"partiprompts97": (None, "a corgi")}, 4),
        questions=questions_file(tmp_path / "q.csv"),
    )
    assert complete.notes == [] and complete.scored == 12 and complete.categories["other"].score == 1.0


def test_scores_that_the_answers_do_not_give_are_named(tmp_path: Path) -> None:
    questions = questions_file(tmp_path / "q.csv")
    path = files(tmp_path, scores={"10": [1.0, 0.25, 0.5, 0.75], "2": SCORES["2"]})
    with pytest.raises(DataError, match=r"answers of 10, sample 2, do not give its score 0\.5"):
        read_dpg(path, expect("dpg", PROMPTS, 4), questions=questions)
    detail = detail_of(files(tmp_path))
    detail.write_text("".join(detail.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="answers of 2, sample 3"):
        read_dpg(tmp_path / "dpg_results.txt", expect("dpg", PROMPTS, 4), questions=questions)
    detail.write_text("nonsense\n")
    with pytest.raises(DataError, match="row 0: is no answer"):
        read_dpg(tmp_path / "dpg_results.txt", expect("dpg", PROMPTS, 4), questions=questions)
    other = questions_file(tmp_path / "other.csv", {"2": QUESTIONS["2"]})
    files(tmp_path)
    with pytest.raises(DataError, match="the questions have no 10"):
        read_dpg(tmp_path / "dpg_results.txt", expect("dpg", PROMPTS, 4), questions=other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/x/10.png, 1.0, 1.0, 1.0, 1.0, 1.0", "row 2: 10 occurs twice"),
        ("/x/11.png, 1.0, 1.0, 1.0, 1.0, 1.0", "row 2: 11 is no prompt of the set"),
        ("/x/11.png, 1.0, 1.0, 1.0, 1.0, 0.9", "row 2: is no result of 4 samples"),
        ("/x/11.png, 1.0, 1.0", "row 2: is no result"),
        ("/x/11.png, nan, nan, nan, nan, nan", "row 2: is no result of 4 samples"),
        ("/x/11.png, 2.0, 0.0, 0.0, 0.0, 0.5", "row 2: is no result of 4 samples"),
        ("Traceback", "row 2: is no result"),
    ],
)
def test_a_line_that_does_not_belong_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = files(tmp_path)
    path.write_text(path.read_text().replace("Model: b", f"{line}\nModel: b"))
    with pytest.raises(DataError, match=message):
        read_dpg(path, expect("dpg", PROMPTS, 4))


@pytest.mark.parametrize("score", ["nan", "1e999", "none"])
def test_a_summary_that_is_no_number_is_named(tmp_path: Path, score: str) -> None:
    path = files(tmp_path)
    path.write_text(path.read_text().replace("DPG-Bench score: 50.0", f"DPG-Bench score: {score}"))
    with pytest.raises(DataError, match=f"its summary has a score '{score}'"):
        read_dpg(path, expect("dpg", PROMPTS, 4))


def test_a_scorer_that_did_not_end_has_no_summary(tmp_path: Path) -> None:
    path = files(tmp_path)
    path.write_text(path.read_text().split("Model: b")[0])
    found = read_dpg(path, expect("dpg", PROMPTS, 4))
    assert found.official == {} and found.overall == 0.46875
