# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.lmms.test_guard import result, scores
from verl_uae.bench.lmms import TASKS
from verl_uae.cli import main


def test_the_guard_fails_a_run_beyond_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = result(tmp_path / "before.json", scores(0.75))
    after = result(tmp_path / "after.json", scores(0.688))
    guard = ["bench", "guard", str(before), str(after), "--max-drop"]
    assert main([*guard, "5", "--out", str(tmp_path / "new" / "guard.json")]) == 1
    assert "uae_mmt_val:ocr dropped by 6.20 points, more than 5." in capsys.readouterr().out
    written = json.loads((tmp_path / "new" / "guard.json").read_text())
    assert written["passed"] is False and written["changes"][0]["drop"] == pytest.approx(6.2)
    assert main([*guard, "7"]) == 0
    assert main([*guard, "1", "--watch", "mmt_val:accuracy"]) == 0
    assert main([*guard, "-1"]) == 2 and main([*guard, "nan"]) == 2
    assert "--max-drop" in capsys.readouterr().err


def test_the_folder_of_tasks_is_printed(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "tasks"]) == 0
    assert Path(capsys.readouterr().out.strip()) == TASKS and (TASKS / "uae_ocr_guard.yaml").is_file()
