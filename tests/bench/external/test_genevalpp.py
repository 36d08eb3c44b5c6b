# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench.external.outputs import expect, genevalpp_file
from verl_uae.bench.external.genevalpp import read_genevalpp
from verl_uae.errors import DataError

PROMPTS = {
    "1": ("color_attr", "A brown bus"),
    "2": ("color_attr", "A pink tie"),
    "3": ("color_attr", "A red cup"),
    "4": ("counting", "Seven cups"),
}
RIGHT, WRONG = {"correct": 1, "reason": "ok"}, {"correct": 0, "reason": "a cup is missing"}


def verdicts(**changes: Any) -> list[tuple[int, str, str, Any]]:
    """2 of 3 and 1 of 1, with the results of ``changes`` by key."""
    results = {"1": RIGHT, "2": WRONG, "3": RIGHT, "4": RIGHT} | {key[1:]: value for key, value in changes.items()}
    return [(int(key), *PROMPTS[key], results[key]) for key in PROMPTS if results[key] is not None]  # type: ignore[misc]


def test_scores_by_hand(tmp_path: Path) -> None:
    found = read_genevalpp(genevalpp_file(tmp_path / "Output.json", verdicts()), expect("genevalpp", PROMPTS))
    assert {tag: (category.score, category.expected) for tag, category in found.categories.items()} == {
        "color_attr": (2 / 3, 3),
        "counting": (1.0, 1),
    }
    assert found.overall == (2 / 3 + 1) / 2 and found.missing == [] and found.scored == 4
    # Rounded twice: (0.6667 + 1) / 2.
    assert found.official["overall"] == 0.8334 and found.official["overall_accuracy_all_samples"] == 0.75


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (
            {"correct": -1, "reason": "Image not successfully evaluated after 3 retries: x"},
            "not successfully evaluated",
        ),
        ({"correct": 0, "reason": "Image not found"}, "Image not found"),
        ({"correct": "1", "reason": ""}, "no verdict"),
        ({"reason": "forgot"}, "forgot"),
        (None, "not in the results"),
    ],
)
def test_a_picture_without_a_verdict_is_missing_and_not_wrong(tmp_path: Path, result: Any, reason: str) -> None:
    path = genevalpp_file(tmp_path / "Output.json", verdicts(_2=result))
    found = read_genevalpp(path, expect("genevalpp", PROMPTS))
    assert [entry["what"] for entry in found.missing] == ["2.jpg"] and reason in found.missing[0]["reason"]
    assert found.categories["color_attr"].score == 1.0 and found.scored == 3
    # The scorer counts it as wrong, unless it is not there at all.
    assert found.official["tag_accuracy"]["color_attr"] == (1.0 if result is None else 0.6667)


def test_a_verdict_may_be_a_truth_value(tmp_path: Path) -> None:
    path = genevalpp_file(tmp_path / "Output.json", verdicts(_2={"correct": True}, _4={"correct": False}))
    found = read_genevalpp(path, expect("genevalpp", PROMPTS))
    assert (found.categories["color_attr"].score, found.categories["counting"].score) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag_accuracy": {"color_attr": 0.7, "counting": 1.0}}, "its entries give 0.6667"),
        ({"tag_accuracy": {"color_attr": 0.6667}}, "tag_accuracy"),
        ({"tag_accuracy": {"color_attr": None, "counting": 1.0}}, "its entries give 0.6667"),
        ({"tag_accuracy": {"color_attr": float("nan"), "counting": 1.0}}, "its entries give 0.6667"),
        ({"overall_score_mean_of_tags": float("nan")}, "its entries give 0.8333"),
        ({"overall_score_mean_of_tags": 0.9}, "its entries give 0.8333"),
        ({"overall_results": 3}, "is no result"),
        ({"overall_results": [{"id": 1}]}, "row 0: is no result"),
    ],
)
def test_an_altered_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = genevalpp_file(tmp_path / "Output.json", verdicts(), **change)
    with pytest.raises(DataError, match=message):
        read_genevalpp(path, expect("genevalpp", PROMPTS))


def test_other_prompts_and_repetitions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: 2 is of a prompt that is not in the set"):
        read_genevalpp(
            genevalpp_file(tmp_path / "a.json", verdicts()),
            expect("genevalpp", PROMPTS | {"2": ("color_attr", "Another tie")}),
        )
    with pytest.raises(DataError, match="row 4: 1 occurs twice"):
        read_genevalpp(genevalpp_file(tmp_path / "b.json", [*verdicts(), verdicts()[0]]), expect("genevalpp", PROMPTS))
    with pytest.raises(DataError, match="cannot be read"):
        read_genevalpp(tmp_path / "nowhere.json", expect("genevalpp", PROMPTS))
