# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.chain.conftest import picture
from verl_uae.bench.cli import SPEED
from verl_uae.bench.discriminate import discrimination_tables, read_discrimination
from verl_uae.cli import main


def discriminate(*words: object) -> int:
    return main(["bench", "discriminate", *map(str, words)])


def test_measured_merged_and_rendered(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "images").mkdir()
    for index in range(2):
        picture(index).save(tmp_path / "images" / f"{index}.png")
    words = ["--photographs", tmp_path / "images", "--size", 32, "--scenes", 20, "--no-defaults"]
    out = ["--speed", "32x2", "--repetitions", 1, "--term", "{name: pixel}", "--out", tmp_path / "a"]
    assert discriminate(*words, *out) == 0
    assert re.search(r"not measured: .*\bclip\b", capsys.readouterr().out)
    with np.load(tmp_path / "a" / "scenes.npz") as values:
        assert values["pixel"].shape == (20, 44) and (values["pixel"][:, 0] == 1.0).all()
    more = ["--speed", "--term", "{name: psnr}", "--merge", tmp_path / "a" / "discrimination.json"]
    assert discriminate(*words, *more, "--out", tmp_path / "b") == 0
    found = read_discrimination(tmp_path / "b" / "discrimination.json")
    assert found["worlds"].keys() == {"photographs", "scenes"} and found["speed"].keys() == {"32"}
    assert all(list(world["terms"]) == ["pixel", "psnr"] for world in found["worlds"].values())
    assert (tmp_path / "b" / "discrimination.md").read_text() == discrimination_tables(found)
    capsys.readouterr()
    assert discriminate("--render", tmp_path / "b" / "discrimination.json") == 0
    assert capsys.readouterr().out == discrimination_tables(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x", "--speed", "256"], "--speed"),
        (["--out", "x", "--speed", "16x1"], "--speed"),
        (["--out", "x", "--scenes", "0", "--speed"], "nothing to measure"),
        (["--out", "x", "--repetitions", "0"], "--repetitions"),
        (["--scenes", "20"], "--out"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert discriminate(*words) == 2
    assert message in capsys.readouterr().err
    assert all("x" in size for size in SPEED)
