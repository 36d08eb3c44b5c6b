# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from verl_uae.checkpoints import summary as module
from verl_uae.checkpoints.names import SUMMARY
from verl_uae.checkpoints.summary import RunSummary, duration, executable, last_lines
from verl_uae.errors import CheckpointError


def reached(**changes: object) -> RunSummary:
    found = RunSummary("g4u", 60, rows="data/val set.parquet")
    found.note_validation(0, {"val-core/scenes/reward/mean@1": 0.5, "val-aux/x": 1.0, "val-core/flow_loss": 0.5})
    found.note_validation(30, {"val-core/scenes/reward/mean@1": 0.8, "val-core/flow_loss": 0.25})
    found.note_validation(60, {"val-core/scenes/reward/mean@1": 0.75, "val-core/flow_loss": 0.375})
    for name, value in {
        "step": 60,
        "ended": True,
        "saved": 60,
        "panel": "run/panels/step_000060.html",
        **changes,
    }.items():
        setattr(found, name, value)
    return found


def test_what_is_written_is_read_and_damage_is_named(tmp_path: Path) -> None:
    assert RunSummary.read(tmp_path) is None
    reached().write(tmp_path / "run")
    assert RunSummary.read(tmp_path / "run") == reached()
    for text in (
        "{",
        "[]",
        '{"stage": "g4u", "total_steps": 1, "best": {"a": 1}, "last": {}}',
        '{"best": {}, "last": {}}',
    ):
        (tmp_path / SUMMARY).write_text(text)
        with pytest.raises(CheckpointError) as caught:
            RunSummary.read(tmp_path)
        assert caught.value.path == tmp_path / SUMMARY


def test_the_lines_name_best_and_last_checkpoint_panel_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "executable", lambda: ["verl-uae"])
    monkeypatch.chdir(tmp_path)
    lines = last_lines(reached(), "run", 266.0, done=True, save_freq=60)
    assert lines[0] == "verl_uae: stage g4u done: 60 of 60 steps in 4 min 26 s"
    assert "val-core/scenes/reward/mean@1: best 0.8 at step 30, last 0.75 at step 60" in lines[1]
    # The best of a loss is the smallest.
    assert "val-core/flow_loss: best 0.25 at step 30, last 0.375 at step 60" in lines[2]
    assert "run/panels/step_000060.html" in lines[3] and lines[4].split() == ["checkpoint", "run/global_step_60"]
    export, sample = (shlex.split(line.removeprefix("  use it")) for line in lines[5:])
    assert export == ["verl-uae", "export", "run/global_step_60", "--out", "run/model_60"]
    assert sample[:3] == ["verl-uae", "sample", "run/model_60"] and sample[3:5] == ["--rows", "data/val set.parquet"]
    assert "  metrics     run/metrics.jsonl" in last_lines(
        reached(metrics="run/metrics.jsonl"), "run", 266.0, done=True, save_freq=60
    )
    # An export overwrites nothing.
    (tmp_path / "run" / "model_60").mkdir(parents=True)
    again = last_lines(reached(), "run", 266.0, done=True, save_freq=60)[5]
    assert again.endswith("--out run/model_60_2")


@pytest.mark.parametrize(
    ("summary", "done", "save_freq", "wanted"),
    [
        (reached(saved=None), True, -1, ["none: trainer.save_freq=-1 saves nothing"]),
        (
            reached(saved=None, step=3),
            False,
            60,
            ["FAILED: 3 of 60 steps", "none: trainer.save_freq=60, and it ended before"],
        ),
        (reached(saved=30, step=31), False, 30, ["FAILED: 31 of 60", "global_step_30"]),
        (reached(saved=30, step=30, ended=False), False, 30, ["FAILED: at least 30 of 60 steps"]),
        (
            RunSummary("u4g", 2),
            True,
            1,
            ["none was finished; see trainer.test_freq", "none: there was no validation with probes"],
        ),
    ],
)
def test_what_is_not_there_is_said(summary: RunSummary, done: bool, save_freq: int, wanted: list[str]) -> None:
    text = "\n".join(last_lines(summary, "run", 1.0, done=done, save_freq=save_freq))
    assert all(part in text for part in wanted), text
    assert ("verl-uae" in text) is (summary.saved is not None)


def test_the_command_is_called_as_it_can_be_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    own = bin_folder / "verl-uae"
    shutil.copy(sys.executable, own)
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert executable() == [".venv/bin/verl-uae"]
    monkeypatch.chdir("/")
    monkeypatch.setenv("PATH", str(bin_folder))
    assert executable() == ["verl-uae"]
    monkeypatch.setenv("PATH", "/nowhere")
    own.unlink()
    assert executable() == [str(bin_folder / "python"), "-m", "verl_uae.cli"]


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (4.4, 266, 7384)] == ["4 s", "4 min 26 s", "2 h 3 min"]
