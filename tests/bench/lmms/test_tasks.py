# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The task files themselves; with lmms-eval they are run in test_model.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from verl_uae.bench import lmms as scoring
from verl_uae.bench.lmms import READING, TASKS

FILES = sorted(TASKS.glob("*.yaml"))

#: Categories of MMT-Bench, as in its evaluation in VLMEvalKit (``MMT_abbrs``), as far as UAE reports them.
OF_THE_PAPER = {
    "visual_recognition", "localization", "counting", "hallucination", "visual_captioning", "visual_grounding",
    "action_recognition", "pixel_level_perception", "image-to-image_translation", "relation_reasoning", "emotion",
    "visual_illusion", "ocr", "doc_understanding", "image_retrieval", "threed",
}  # fmt: skip


class Loader(yaml.SafeLoader):
    """Reads ``!function a.b.c`` as the function."""


def function(loader: Loader, node: yaml.ScalarNode) -> Any:
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(importlib.import_module(module), name)


Loader.add_constructor("!function", function)


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.load(path.read_text(encoding="utf-8"), Loader))


def metrics(task: str) -> dict[str, dict[str, Any]]:
    return {entry["metric"]: entry for entry in read(TASKS / f"{task}.yaml")["metric_list"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_named_as_its_task_and_its_functions_exist(path: Path) -> None:
    content = read(path)
    assert content.get("group", content["task"]) == path.stem
    if "group" not in content:
        assert {"dataset_path", "test_split", "metric_list", "generation_kwargs"} <= content.keys()
        assert content["generation_kwargs"]["temperature"] == 0 and callable(content["process_results"])


def test_groups_are_of_tasks_here_or_of_lmms_eval() -> None:
    tasks = {path.stem for path in FILES}
    groups = {path.stem: content["task"] for path in FILES if "group" in (content := read(path))}
    assert groups.keys() == {"uae_understanding", "uae_ocr_guard"}
    assert {task for group in groups.values() for task in group} - tasks == {"mmmu_val"}
    assert set(groups["uae_ocr_guard"]) <= set(groups["uae_understanding"])


def test_every_score_that_a_row_gives_is_reported() -> None:
    """lmms-eval drops a score without an entry in metric_list."""
    row = {"A": "x", "answer": "A", "question": "?"}
    for category in OF_THE_PAPER:
        assert scoring.mmt_results(row | {"l2-category": category}, ["A"]).keys() <= metrics("uae_mmt_val").keys()
    assert scoring.pope_results({"answer": "yes"}, ["no"]).keys() == metrics("uae_pope").keys()
    kinds = [*scoring.OCR_GROUPS, "Irregular Text Recognition"]
    rows = [scoring.ocr_results({"answer": "", "question_type": kind, "dataset": ""}, [""]) for kind in kinds]
    assert {name for found in rows for name in found} == metrics("uae_ocrbench").keys()


def test_means_are_of_numbers_and_the_rest_of_pairs() -> None:
    found = scoring.pope_results({"answer": "yes"}, ["no"])
    for name, entry in metrics("uae_pope").items():
        assert (entry["aggregation"] == "mean") == isinstance(found[name], float)
    assert not metrics("uae_pope")["unanswered"]["higher_is_better"]


def test_the_guard_watches_scores_of_these_tasks() -> None:
    ours = [(task, metric) for task, metric in READING if task.startswith("uae_")]
    assert len(ours) == 3 and all(metric in metrics(task) for task, metric in ours)
    assert {task for task, _ in ours} == set(read(TASKS / "uae_ocr_guard.yaml")["task"])


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
