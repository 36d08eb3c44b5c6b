# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from verl_uae.bench.lmms import TASKS, exceeded, guard_table, read_changes
from verl_uae.cli import main
from verl_uae.errors import ConfigError, DataError


def result(path: Path, scores: dict[str, dict[str, Any]], **changes: Any) -> Path:
    """A file as lmms-eval 0.7.3 writes it: ``scores`` by task and ``metric,filter``."""
    content = {
        "results": {"uae_ocr_guard": {" ": " ", "alias": "uae_ocr_guard"}}
        | {task: {"alias": f" - {task}", **entries} for task, entries in scores.items()},
        "versions": dict.fromkeys(scores, 1.0),
        "higher_is_better": {task: {"unanswered": False, "ocr": True} for task in scores},
        "n-samples": {task: {"original": 400, "effective": 400} for task in scores},
        "config": {"model": "uae", "limit": None, "offset": 0},
    }
    path.write_text(json.dumps(content | changes))
    return path


def scores(ocr: float, unanswered: float = 0.01, accuracy: float = 0.5, own: float = 56.3) -> dict[str, dict[str, Any]]:
    return {
        "uae_mmt_val": {
            "ocr,none": ocr,
            "ocr_stderr,none": 0.03,
            "ocr_stderr_clt,none": 0.03,
            "unanswered,none": unanswered,
            "unanswered_stderr,none": "N/A",
        },
        "uae_ocrbench": {"accuracy,none": accuracy, "accuracy_stderr,none": 0.04},
        "mmt_val": {"accuracy,none": own},
    }


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return result(tmp_path / "before.json", scores(0.75))


def test_the_drop_of_each_metric_in_points(before: Path, tmp_path: Path) -> None:
    """The figures of the paper: OCR falls from 75.0 to 68.8 while the score of all does not."""
    changes = read_changes(before, result(tmp_path / "after.json", scores(0.688, 0.05, 0.51, 56.5)))
    found = {(change.task, change.metric): change for change in changes}
    assert set(found) == {
        ("uae_mmt_val", "ocr"), ("uae_mmt_val", "unanswered"), ("uae_ocrbench", "accuracy"), ("mmt_val", "accuracy")
    }  # fmt: skip
    ocr = found["uae_mmt_val", "ocr"]
    assert (ocr.before, ocr.after, ocr.count, ocr.watched) == (75.0, pytest.approx(68.8), 400, True)
    assert ocr.drop == pytest.approx(6.2) and ocr.standard_error == pytest.approx(3 * math.sqrt(2))
    # More answers without a choice are worse; more right ones are better; percent stay percent.
    assert found["uae_mmt_val", "unanswered"].drop == pytest.approx(4.0)
    assert found["uae_mmt_val", "unanswered"].standard_error is None
    assert found["uae_ocrbench", "accuracy"].drop == pytest.approx(-1.0)
    assert found["mmt_val", "accuracy"].before == 56.3 and not found["mmt_val", "accuracy"].watched


@pytest.mark.parametrize(("limit", "beyond"), [(6.1, ["ocr"]), (6.2, []), (10.0, [])])
def test_only_what_is_watched_and_beyond_the_limit_counts(
    before: Path, tmp_path: Path, limit: float, beyond: list[str]
) -> None:
    changes = read_changes(before, result(tmp_path / "after.json", scores(0.688, unanswered=0.4)))
    assert [change.metric for change in exceeded(changes, limit)] == beyond
    text = guard_table(changes, limit)
    assert "| uae_mmt_val | ocr | 400 | 75.00 | 68.80 | 6.20 | 4.24 |" in text
    assert ("* uae_mmt_val:ocr dropped by 6.20 points" in text) == bool(beyond)
    assert text.count("exceeded") == len(beyond)


def test_other_metrics_can_be_watched(before: Path, tmp_path: Path) -> None:
    after = result(tmp_path / "after.json", scores(0.1, own=50.0))
    changes = read_changes(before, after, ["mmt_val:accuracy"])
    assert [(change.task, change.metric) for change in exceeded(changes, 2.0)] == [("mmt_val", "accuracy")]
    with pytest.raises(ConfigError, match="has no mmt_val:ocr"):
        read_changes(before, after, ["mmt_val:ocr"])


def test_a_guard_that_would_watch_nothing_does_not_pass(before: Path, tmp_path: Path) -> None:
    nothing = result(tmp_path / "nothing.json", {"mmt_val": {"accuracy,none": 50.0}})
    with pytest.raises(ConfigError, match="--watch"):
        read_changes(nothing, nothing)
    lost = scores(0.75)
    del lost["uae_ocrbench"]
    with pytest.raises(DataError, match="has no uae_ocrbench:accuracy, which is watched"):
        read_changes(before, result(tmp_path / "lost.json", lost))
    with pytest.raises(DataError, match="has no uae_ocrbench:accuracy"):
        read_changes(before, result(tmp_path / "text.json", scores(0.75, accuracy="N/A")))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"ocr is 0\.75 before and nan after"):
        read_changes(before, result(tmp_path / "nan.json", scores(math.nan)))


def test_other_rows_do_not_compare(before: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"n-samples": {"uae_mmt_val": {"original": 400, "effective": 8}}}, "another number of rows"),
        ({"versions": {"uae_mmt_val": 2.0}}, "another version"),
        ({"config": {"limit": None, "offset": 8}}, "another offset"),
    ):
        with pytest.raises(DataError, match=message):
            read_changes(before, result(tmp_path / "after.json", scores(0.75), **changes))


def test_another_file_is_named(before: Path, tmp_path: Path) -> None:
    content = json.loads(before.read_text())
    damaged = [{**content, name: []} for name in ("results", "n-samples", "versions", "higher_is_better", "config")]
    damaged += [{**content, name: {"uae_ocrbench": 1.0}} for name in ("results", "n-samples")]
    for wrong in ([], {}, *damaged):
        (tmp_path / "x.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="is no result of lmms-eval"):
            read_changes(before, tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_changes(tmp_path / "nowhere.json", before)


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
