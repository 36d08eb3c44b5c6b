# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.bench.external.outputs import expect
from verl_uae.bench.external.result import Category, Finding, as_result, mean_over_categories, read_result
from verl_uae.errors import DataError


def category(*scores: list[float]) -> Category:
    made = Category(expected=sum(map(len, scores)))
    for found in scores:
        made.add(found)
    return made


def test_a_category_is_the_mean_over_scores_not_over_prompts() -> None:
    found = category([1.0], [0.0, 0.0, 1.0], [])
    assert found.score == 0.5 and found.as_json(0, "a")["count"] == 4 and found.as_json(0, "a")["prompts"] == 2
    # Two prompts of 1 and 1/3: resampled they give 1, 1/3, or the ratio of sums.
    assert set(np.round(found.resampled(0, "a"), 6)) == {1.0, 0.333333, 0.5}
    assert Category(3).as_json(0, "a")["score"] is None and Category(3).as_json(0, "a")["interval"] is None


def test_categories_of_one_size_are_resampled_apart() -> None:
    """Sharing the draws, a category and its opposite would always add up to one."""
    right = [float(n % 2) for n in range(40)]
    first, second = category(*([value] for value in right)), category(*([1 - value] for value in right))
    both = first.resampled(0, "a") + second.resampled(0, "b")
    assert both.std() == pytest.approx(np.sqrt(2) * first.resampled(0, "a").std(), rel=0.05)
    assert np.array_equal(first.resampled(0, "a"), first.resampled(0, "a"))
    assert not np.array_equal(first.resampled(0, "a"), first.resampled(1, "a"))


def test_the_mean_over_categories_leaves_out_those_without_scores() -> None:
    categories = {"a": category([1.0], [0.0]), "b": category([1.0]), "c": Category(5)}
    overall, bounds = mean_over_categories(categories, 0)
    assert overall == 0.75 and bounds == [0.5, 1.0]
    assert mean_over_categories({"c": Category(5)}, 0) == (None, None)


def test_an_incomplete_result_has_no_overall_score(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("text")
    expected = expect("geneval", {"00000": ("a", "x")}, 2)
    finding = Finding({"a": category([1.0])}, 1.0, [1.0, 1.0], "rule", {}, 1, [{"what": "x", "reason": "gone"}])
    content = as_result(finding, expected, [tmp_path / "results.jsonl"], seed=5)
    assert (content["complete"], content["overall"], content["partial_overall"]) == (False, None, 1.0)
    assert content["files"] == {"results.jsonl": hashlib.sha256(b"text").hexdigest()}
    assert content["bootstrap"] == {"level": 0.95, "resamples": 10_000, "seed": 5, "unit": "prompt"}
    finding.missing = []
    content = as_result(finding, expected, [], seed=5)
    assert (content["complete"], content["overall"], content["partial_overall"]) == (True, 1.0, None)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    assert read_result(path) == content


@pytest.mark.parametrize("text", ["{", "[]", '{"bench": "wise"}', '{"bench": "dpg", "prompt_set": "long"}'])
def test_another_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        read_result(tmp_path / "other.json")
