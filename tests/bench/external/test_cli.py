# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.external.conftest import DPG, GENEVAL, REWRITTEN, write_lines
from tests.bench.external.outputs import QUESTIONS, dpg_files, geneval_line, genevalpp_file, questions_file
from tests.chain.test_cli import MODEL_OPTIONS
from verl_uae.cli import main

FAST = ["--device", "cpu", "--steps", "1", "--guidance", "1", "--seed", "3"]


def bench(*words: object) -> int:
    return main(["bench", *map(str, words)])


def test_geneval_from_prompts_to_scores(
    model_folder: Path, geneval_file: Path, rewritten_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = ["--model", model_folder, *MODEL_OPTIONS, *FAST, "--rewritten", rewritten_file, "--samples", 1]
    assert bench("draw-prompts", "geneval", geneval_file, *model, "--out", tmp_path / "out", "--shard", "0/2") == 0
    assert bench("draw-prompts", "geneval", geneval_file, *model, "--out", tmp_path / "out", "--grid") == 0
    printed = capsys.readouterr()
    assert "3 pictures, 2 of them from before" in printed.err
    assert f"evaluate_images.py {tmp_path / 'out' / 'images'} --outfile" in printed.out
    lines = [
        geneval_line(f"0000{n}", 0, line["tag"], line["prompt"], n != 1, drawn_prompt=REWRITTEN[n])
        for n, line in enumerate(GENEVAL)
    ]
    results = write_lines(tmp_path / "results.jsonl", lines)
    words = ["read", "geneval", results, "--drawn", tmp_path / "out", "--out", tmp_path / "r" / "uae.json"]
    assert bench(*words) == 0
    content = json.loads((tmp_path / "r" / "uae.json").read_text())
    assert content["overall"] == 0.75 and content["prompt_set"] == "rewritten" and content["drawing"]["seed"] == 3
    write_lines(results, lines[:2])
    assert bench(*words) == 1
    capsys.readouterr()
    assert bench("scores", f"ours={tmp_path / 'r' / 'uae.json'}") == 0
    assert "| ours | 2 of 3 | 50.00 | – |" in capsys.readouterr().out


def test_ready_results_of_the_other_two(
    genevalpp_file_results: Path, genevalpp_file: Path, dpg_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["read", "genevalpp", genevalpp_file_results, "--prompts", genevalpp_file]
    assert bench(*words, "--prompt-set", "rewritten", "--out", tmp_path / "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text())["prompt_set"] == "rewritten"
    scores = {key: [1.0] * 4 for key in DPG}
    answers = {key: [["yes"] * len(QUESTIONS[key])] * 4 for key in DPG}
    results = dpg_files(tmp_path / "dpg_results.txt", scores, answers)
    words = ["read", "dpg", results, "--prompts", dpg_folder, "--out", tmp_path / "b.json"]
    assert bench(*words, "--questions", questions_file(tmp_path / "q.csv")) == 0
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["overall"] == 1.0 and set(content["files"]) == {"dpg_results.txt", "dpg_results_detail.txt", "q.csv"}
    capsys.readouterr()
    assert bench("scores", tmp_path / "a.json", tmp_path / "b.json") == 0
    printed = capsys.readouterr().out
    assert "GenEval++, rewritten prompts" in printed and "DPG-Bench, original prompts" in printed


@pytest.fixture
def genevalpp_file_results(tmp_path: Path) -> Path:
    verdicts = [
        (1, "color_attr", "A brown bus", {"correct": 1}),
        (2, "color_attr", "A pink tie", {"correct": 0}),
        (3, "counting", "Seven cups", {"correct": 1}),
    ]
    return genevalpp_file(tmp_path / "Output.json", verdicts)


def test_impossible_words_are_named(
    genevalpp_file_results: Path, genevalpp_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    read = ["read", "genevalpp", genevalpp_file_results, "--out", tmp_path / "x.json"]
    draw = ["draw-prompts", "genevalpp", genevalpp_file, "--out", tmp_path / "out"]
    prompts = ["--prompts", genevalpp_file]
    for words, message in (
        (read, "either --drawn or --prompts"),
        ([*read, *prompts, "--drawn", tmp_path], "either --drawn or --prompts"),
        ([*read, "--drawn", tmp_path, "--samples", 2], "--samples"),
        ([*read, *prompts, "--questions", tmp_path], "--questions"),
        ([*read, *prompts, "--samples", 2], "--samples"),
        (draw, "--model"),
        ([*draw, "--model", tmp_path, "--shard", "1"], "--shard"),
        ([*draw, "--model", tmp_path, "--shard", "2/2"], "--shard"),
        ([*draw, "--model", tmp_path, "--resolution", 0], "--resolution"),
        (["scores", genevalpp_file_results], "is no result"),
    ):
        assert bench(*words) == 2, words
        assert message in capsys.readouterr().err, words
