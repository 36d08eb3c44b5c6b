# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from tests.composing import composed
from verl_uae.checkpoints.names import SUMMARY
from verl_uae.checkpoints.summary import RunSummary
from verl_uae.launch.callbacks import EndingCallback, ending


def run(folder: Path, save_freq: int, status: JobStatus, reached: RunSummary | None) -> None:
    words = ["hardware=cpu", "preset=scenes", "trainer.test_freq=-1"]
    words += [f"trainer.default_local_dir={folder}", f"trainer.save_freq={save_freq}"]
    config = composed(*words, name="uae_u4g")
    callback = EndingCallback()
    callback.on_job_start(config)
    if reached is not None:
        reached.write(folder)
    callback.on_job_end(config, JobReturn(status=status))


def test_a_run_that_saves_nothing_says_so_first_and_last(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path, -1, JobStatus.COMPLETED, RunSummary("u4g", 2, step=2, ended=True))
    printed = capsys.readouterr()
    assert "nothing will be saved (trainer.save_freq=-1)" in printed.err
    assert printed.out.splitlines()[-1].split()[:2] == ["checkpoint", "none:"] and "done: 2 of 2 steps" in printed.out
    run(tmp_path, 1, JobStatus.COMPLETED, RunSummary("u4g", 2, step=2, ended=True, saved=2))
    printed = capsys.readouterr()
    assert "nothing will be saved" not in printed.err and "sample" in printed.out.splitlines()[-1]
    first, stage, *_, steps, devices, output = printed.err.splitlines()
    assert first == "verl_uae:" and stage.split(maxsplit=1)[1].startswith("u4g, Understanding for Generation: trains")
    assert steps.split(maxsplit=1)[1] == "60, saved every 1" and devices.split(maxsplit=1)[1] == "CPU, seed 42"
    assert "8 captions x 8 drawings, pictures of 32 x 32" in printed.err and output.split()[1] == str(tmp_path)


def test_an_earlier_run_in_the_folder_speaks_for_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    RunSummary("u4g", 9, step=9, saved=9, ended=True).write(tmp_path)
    run(tmp_path, 1, JobStatus.FAILED, None)
    printed = capsys.readouterr().out
    assert "FAILED before its first step" in printed and "global_step_9" not in printed
    run(tmp_path, 1, JobStatus.COMPLETED, None)
    assert "of this machine" in capsys.readouterr().out


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text("{")
    config = {"trainer": {"default_local_dir": str(tmp_path), "save_freq": 1}, "uae": {"stage": "u4g"}}
    (line,) = ending(OmegaConf.create(config), 1.0, done=True)
    assert str(tmp_path / SUMMARY) in line
