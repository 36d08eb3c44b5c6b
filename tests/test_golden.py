# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import FILE, main


def test_every_difference_of_two_records_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"g4u": {"1": {"loss": (0.1).hex(), "gone": (1.0).hex()}}, "pictures": {"0": {"caption": "a red square"}}}
    two = {"g4u": {"1": {"loss": (0.1 + 2**-56).hex()}, "2": {}}, "pictures": {"0": {"caption": "a red disc"}}}
    folders = []
    for name, record in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_text(json.dumps(record))
        folders.append(str(tmp_path / name))
    assert main("compare", folders[0], folders[0]) == 0
    assert capsys.readouterr().out == "the same, bit for bit\n"
    assert main("compare", *folders) == 1
    assert capsys.readouterr().out.splitlines() == [
        "g4u: 1: gone: 0x1.0000000000000p+0 (1) -> absent",
        "g4u: 1: loss: 0x1.999999999999ap-4 (0.1) -> 0x1.999999999999bp-4 (0.1)",
        "g4u: 2: absent -> there",
        "pictures: 0: caption: a red square -> a red disc",
    ]
