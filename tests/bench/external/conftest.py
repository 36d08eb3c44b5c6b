# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Small prompt files in the forms of the three benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GENEVAL: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
]
REWRITTEN = ["A wooden bench on grass.", "A brown cow at noon.", "Two round clocks on a wall."]
GENEVALPP: list[dict[str, Any]] = [
    {"tag": "color_attr", "include": [{"class": "bus", "count": 1, "color": "brown"}], "prompt": "A brown bus"},
    {"tag": "color_attr", "include": [{"class": "tie", "count": 1, "color": "pink"}], "prompt": "A pink tie"},
    {"tag": "counting", "include": [{"class": "cup", "count": 7}], "prompt": "Seven cups"},
]
DPG = {"10": "a red circle above a blue square", "2": "green triangle", "partiprompts97": "a corgi"}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def geneval_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL)


@pytest.fixture
def rewritten_file(tmp_path: Path) -> Path:
    """The same requirements with longer prompts, as BAGEL's ``evaluation_metadata_long.jsonl``."""
    lines = [line | {"prompt": text} for line, text in zip(GENEVAL, REWRITTEN, strict=True)]
    return write_lines(tmp_path / "evaluation_metadata_long.jsonl", lines)


@pytest.fixture
def genevalpp_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "Geneval++.jsonl", GENEVALPP)


@pytest.fixture
def dpg_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, text in DPG.items():
        (folder / f"{name}.txt").write_text(f"{text}\n")
    return folder
