# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench.external.conftest import write_lines
from tests.bench.external.outputs import DIGEST, dpg_files, expect, geneval_line
from verl_uae.bench.external.dpg import read_dpg
from verl_uae.bench.external.geneval import read_geneval
from verl_uae.bench.external.result import as_result
from verl_uae.bench.external.table import render

PROMPTS = {"00000": ("single_object", "a bench"), "00001": ("counting", "two | clocks")}


@pytest.fixture
def original(tmp_path: Path) -> dict[str, Any]:
    lines = [geneval_line(key, sample, *PROMPTS[key], sample < 3) for key in PROMPTS for sample in range(4)]
    path = write_lines(tmp_path / "original.jsonl", lines)
    expected = expect("geneval", PROMPTS, 4)
    return as_result(read_geneval(path, expected), expected, [path], 0)


@pytest.fixture
def rewritten(tmp_path: Path) -> dict[str, Any]:
    path = write_lines(tmp_path / "rewritten.jsonl", [geneval_line("00000", 0, *PROMPTS["00000"], True)])
    expected = expect("geneval", PROMPTS, 4, prompt_set="rewritten")
    return as_result(read_geneval(path, expected), expected, [path], 0)


def test_raw_and_rewritten_prompts_have_tables_of_their_own(
    original: dict[str, Any], rewritten: dict[str, Any]
) -> None:
    first, second = render({"uae": original, "uae rw": rewritten, "other|": original}).split("\n\n**")
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
    text = render({"a": original, "b": other})
    assert "not over the same prompts" in text and "not of the same rewritten prompts" in text
    assert "*" not in render({"a": original, "b": original}).replace("**", "")


def test_categories_of_the_scorer_where_there_are_no_answers(tmp_path: Path) -> None:
    expected = expect("dpg", {"10": (None, "x")}, 4)
    path = dpg_files(tmp_path / "dpg_results.txt", {"10": [1.0, 0.5, 0.5, 1.0]})
    text = render({"a": as_result(read_dpg(path, expected), expected, [path], 0)})
    assert "| a | 4 of 4 | 75.00 | 50.00 | 75.00 | 75.00 to 75.00 |" in text and "last sample" in text
