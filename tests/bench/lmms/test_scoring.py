# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from verl_uae.bench.lmms import scoring

MMT: dict[str, Any] = {
    "question": " Which colour? ",
    "A": "red",
    "B": " blue",
    "C": "",
    "D": None,
    "answer": "B",
    "l2-category": "ocr",
}


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", "B"),
        (" b", None),
        ("B.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B: blue", "B"),
        ("The answer is B", "B"),
        ("Answer: B\nbecause it is blue", "B"),
        ("A cat and nothing else", None),
        ("A or B.", "B"),
        ("A. B.", None),
        ("D", None),
        ("blue", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(answer: str, choice: str | None) -> None:
    assert scoring.chosen(answer, ["A", "B"]) == choice


def test_mmt_bench_scores_a_row_and_its_category() -> None:
    settings = {"pre_prompt": "<", "post_prompt": ">"}
    assert scoring.mmt_question(MMT, settings) == "<Which colour?\nA: red\nB: blue>"
    assert scoring.mmt_question(MMT) == "Which colour?\nA: red\nB: blue"
    assert scoring.mmt_results(MMT, ["B"]) == {"accuracy": 1.0, "unanswered": 0.0, "ocr": 1.0}
    assert scoring.mmt_results(MMT, ["A"]) == {"accuracy": 0.0, "unanswered": 0.0, "ocr": 0.0}
    # No letter, or one that is no choice: wrong, and counted.
    for answer in ("no idea", "C"):
        assert scoring.mmt_results(MMT, [answer]) == {"accuracy": 0.0, "unanswered": 1.0, "ocr": 0.0}


def test_pope_scores_by_hand() -> None:
    said = ["yes", "Yes.", "no", "No, there is not", "yes", "a table", "not sure", "no"]
    truth = ["yes", "no", "no", "yes", "yes", "yes", "no", "no"]
    rows = [scoring.pope_results({"answer": t.title()}, [s]) for s, t in zip(said, truth, strict=True)]
    assert [row["accuracy"] for row in rows] == [1, 0, 1, 0, 1, 0, 0, 1]
    # Three answers yes, two of them right, of four that should be.
    pairs = [row["f1"] for row in rows]
    assert (scoring.precision(pairs), scoring.recall(pairs), scoring.f1(pairs)) == (2 / 3, 2 / 4, 4 / 7)
    assert sum(row["unanswered"] for row in rows) == 2 and sum(row["yes_ratio"] for row in rows) == 3
    assert scoring.precision([("no", "no")]) == scoring.recall([("no", "no")]) == scoring.f1([("no", "no")]) == 0.0


def ocr(answer: Any, said: str, kind: str = "Regular Text Recognition", dataset: str = "IIIT5K") -> dict[str, float]:
    return scoring.ocr_results({"answer": answer, "question_type": kind, "dataset": dataset}, [said])


def test_ocrbench_looks_for_an_accepted_answer() -> None:
    assert ocr(["Stop", "HALT"], "it says\nhalt!") == {"accuracy": 1.0, "recognition": 1.0}
    assert ocr("Stop", "it says go") == {"accuracy": 0.0, "recognition": 0.0}
    assert ocr(["4"], "total: \uff14", "Doc-oriented VQA") == {"accuracy": 1.0, "document_vqa": 1.0}
    formula = {"kind": "Handwritten Mathematical Expression Recognition", "dataset": "HME100k"}
    assert ocr("x ^ 2", "y = x^2", **formula) == {"accuracy": 1.0, "handwritten_mathematics": 1.0}
    # Spaces and case matter as the benchmark has it: in formulas the case, elsewhere the spaces.
    assert ocr("X ^ 2", "y = x^2", **formula)["accuracy"] == 0.0 and ocr("a b", "ab")["accuracy"] == 0.0


def test_pictures_are_rgb_one_or_several() -> None:
    grey = Image.new("L", (2, 2))
    assert [image.mode for image in scoring.visuals({"image": grey})] == ["RGB"]
    assert len(scoring.visuals({"image": [grey, grey]})) == 2
    assert scoring.question({"question": " what? "}, {"post_prompt": "!"}) == "what?!"
