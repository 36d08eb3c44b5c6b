# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.external.conftest import DPG, GENEVAL, REWRITTEN, write_lines
from tests.bench.external.outputs import DIGEST, dpg_files, expect, geneval_line
from verl_uae import UAEPipeline
from verl_uae.bench.draw import DrawSettings
from verl_uae.bench.external.prompts import draw_prompts, read_drawn, read_prompts
from verl_uae.bench.external.result import (
    Category,
    Finding,
    mean_over_categories,
    read_scores,
    scores_result,
    scores_tables,
)
from verl_uae.bench.external.scorers import read_dpg, read_geneval
from verl_uae.errors import ConfigError, DataError


def test_a_drawn_folder_knows_what_its_files_say(
    pipe: UAEPipeline, model_folder: Path, geneval_file: Path, rewritten_file: Path, tmp_path: Path
) -> None:
    prompts = read_prompts("geneval", geneval_file, rewritten_file, samples=2)
    settings = DrawSettings(model=str(model_folder))
    pipe.register_to_config(num_inference_steps=1, guidance_scale=1.0)
    draw_prompts(pipe, prompts, tmp_path / "out", settings)
    drawn = read_drawn("geneval", tmp_path / "out")
    source = read_prompts("geneval", geneval_file, samples=2, rewritten=rewritten_file)
    assert drawn.prompts == source.prompts and list(drawn.prompts) == ["00000", "00001", "00002"]
    assert (drawn.samples, drawn.name) == (source.samples, source.name) == (2, "rewritten")
    assert drawn.source | {"drawing": None} == source.source and drawn.source["drawing"]["num_inference_steps"] == 1
    assert [prompt.drawn for prompt in drawn.prompts.values()] == REWRITTEN
    with pytest.raises(ConfigError, match="has the pictures of geneval, not of dpg"):
        read_drawn("dpg", tmp_path / "out")
    path = tmp_path / "out" / "prompts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="has 2 prompts, the manifest 3"):
        read_drawn("geneval", tmp_path / "out")
    path.write_text(json.dumps({"key": "00000"}))
    with pytest.raises(DataError, match="is not what was written"):
        read_drawn("geneval", tmp_path / "out")


def test_pictures_of_another_program(
    geneval_file: Path, rewritten_file: Path, dpg_folder: Path, tmp_path: Path
) -> None:
    assert read_prompts("dpg", dpg_folder).samples == 4
    assert {key: prompt.text for key, prompt in read_prompts("dpg", dpg_folder).prompts.items()} == DPG
    named = read_prompts("geneval", geneval_file, name="rewritten")
    assert named.name == "rewritten" and named.source["rewritten"] is None
    assert [prompt.tag for prompt in named.prompts.values()] == [line["tag"] for line in GENEVAL]
    for options in ({"name": "long"}, {"name": "original", "rewritten": rewritten_file}):
        with pytest.raises(ConfigError, match="--prompt-set"):
            read_prompts("geneval", geneval_file, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be read"):
        read_drawn("geneval", tmp_path)


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
    content = scores_result(finding, expected, [tmp_path / "results.jsonl"], seed=5)
    assert (content["complete"], content["overall"], content["partial_overall"]) == (False, None, 1.0)
    assert content["files"] == {"results.jsonl": hashlib.sha256(b"text").hexdigest()}
    assert content["bootstrap"] == {"level": 0.95, "resamples": 10_000, "seed": 5, "unit": "prompt"}
    finding.missing = []
    content = scores_result(finding, expected, [], seed=5)
    assert (content["complete"], content["overall"], content["partial_overall"]) == (True, 1.0, None)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    assert read_scores(path) == content


@pytest.mark.parametrize("text", ["{", "[]", '{"bench": "wise"}', '{"bench": "dpg", "prompt_set": "long"}'])
def test_another_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        read_scores(tmp_path / "other.json")


PROMPTS = {"00000": ("single_object", "a bench"), "00001": ("counting", "two | clocks")}


@pytest.fixture
def original(tmp_path: Path) -> dict[str, Any]:
    lines = [geneval_line(key, sample, *PROMPTS[key], sample < 3) for key in PROMPTS for sample in range(4)]
    path = write_lines(tmp_path / "original.jsonl", lines)
    expected = expect("geneval", PROMPTS, 4)
    return scores_result(read_geneval(path, expected), expected, [path], 0)


@pytest.fixture
def rewritten(tmp_path: Path) -> dict[str, Any]:
    path = write_lines(tmp_path / "rewritten.jsonl", [geneval_line("00000", 0, *PROMPTS["00000"], True)])
    expected = expect("geneval", PROMPTS, 4, prompt_set="rewritten")
    return scores_result(read_geneval(path, expected), expected, [path], 0)


def test_raw_and_rewritten_prompts_have_tables_of_their_own(
    original: dict[str, Any], rewritten: dict[str, Any]
) -> None:
    first, second = scores_tables({"uae": original, "uae rw": rewritten, "other|": original}).split("\n\n**")
    assert first.split("\n") == [
        "**GenEval, original prompts**",
        "",
        "| result | scores | single_object | counting | overall | 95% interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| uae | 8 of 8 | 75.00 | 75.00 | 75.00 | 75.00 to 75.00 |",
        "| other\\| | 8 of 8 | 75.00 | 75.00 | 75.00 | 75.00 to 75.00 |",
    ]
    assert second.startswith("GenEval, rewritten prompts**") and "| uae rw | 1 of 8 | 100.00 | – |" in second
    assert "– (partial: 100.00)" in second
    assert "* uae rw is incomplete: 00000/samples/0001.png: not in the results, and 6 more." in second


def test_other_prompts_are_noted(original: dict[str, Any]) -> None:
    other = original | {"source": DIGEST | {"sha256": "1"}, "rewritten": DIGEST}
    text = scores_tables({"a": original, "b": other})
    assert "not over the same prompts" in text and "not of the same rewritten prompts" in text
    assert "*" not in scores_tables({"a": original, "b": original}).replace("**", "")


def test_categories_of_the_scorer_where_there_are_no_answers(tmp_path: Path) -> None:
    expected = expect("dpg", {"10": (None, "x")}, 4)
    path = dpg_files(tmp_path / "dpg_results.txt", {"10": [1.0, 0.5, 0.5, 1.0]})
    text = scores_tables({"a": scores_result(read_dpg(path, expected), expected, [path], 0)})
    assert "| a | 4 of 4 | 75.00 | 50.00 | 75.00 | 75.00 to 75.00 |" in text and "last sample" in text
