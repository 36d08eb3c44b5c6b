# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The last line and the exit code of a training command; with a trainer that saves: tests/e2e/test_faults.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from omegaconf import DictConfig, OmegaConf

from verl_uae.checkpoints.step import mark_complete
from verl_uae.errors import RewardError, StoppedError
from verl_uae.launch.driver import DriverCallback, StopSignals


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    # Where another file has left a Ray in this process, its job is not that of these commands.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    folder = tmp_path / "global_step_4"
    folder.mkdir()
    (folder / "data.pt").write_bytes(b"place")
    mark_complete(folder, 4)
    trainer = {"default_local_dir": str(tmp_path), "resume_mode": "disable"}
    return OmegaConf.create({"trainer": trainer, "uae": {"supervision": {"grace_s": 60.0}}})


def ended(config: DictConfig, error: object, stopped: int | None = None) -> DriverCallback:
    callback = DriverCallback()
    callback.signals = StopSignals(60.0)
    if stopped is not None:
        callback.signals.name, callback.signals.code = signal.Signals(stopped).name, 128 + stopped
    callback.on_job_end(config=config, job_return=SimpleNamespace(_return_value=error))  # type: ignore[arg-type]
    callback.on_run_end(config=config)
    return callback


def task_error(cause: Exception) -> Exception:
    return ray.exceptions.RayTaskError("run", "a traceback of forty lines", cause).as_instanceof_cause()


NEWEST = (
    "the newest complete step is {}/global_step_4; the same command with trainer.resume_mode=auto goes on from there"
)


@pytest.mark.parametrize(
    ("error", "stopped", "code", "line"),
    [
        (task_error(StoppedError("stopped by SIGTERM")), signal.SIGTERM, 143, "stopped by SIGTERM; "),
        (task_error(StoppedError("stopped by SIGINT")), signal.SIGINT, 130, "stopped by SIGINT; "),
        (task_error(RewardError("clip", "hangs")), None, 1, "reward term 'clip': hangs; "),
        (ray.exceptions.ActorDiedError(), None, 1, "the trainer's process died: ActorDiedError: "),
        (ray.exceptions.ActorDiedError(), signal.SIGTERM, 143, "stopped by SIGTERM before its step could be saved ("),
    ],
)
def test_an_end_is_one_line_and_a_documented_code(
    config: DictConfig, capsys: pytest.CaptureFixture[str], error: Exception, stopped: int | None, code: int, line: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        ended(config, error, stopped)
    assert caught.value.code == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"verl_uae: {line}") and printed.count("\n") == 1 and "Traceback" not in printed
    assert printed.endswith(NEWEST.format(config.trainer.default_local_dir) + "\n")


def test_a_bug_keeps_its_traceback_after_the_line(config: DictConfig, capsys: pytest.CaptureFixture[str]) -> None:
    ended(config, task_error(KeyError("bug")))
    assert "KeyError" in capsys.readouterr().err


def test_a_run_that_reached_its_end_says_nothing(config: DictConfig, capsys: pytest.CaptureFixture[str]) -> None:
    ended(config, None, signal.SIGTERM)
    assert capsys.readouterr().err == ""


EARLY = """
import os, signal, sys, time
from verl_uae.launch.driver import StopSignals
StopSignals(60.0).listen()
os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(200)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_ends_the_command_at_once(number: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", EARLY, str(int(number))],
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=190,
        check=False,
    )
    name = signal.Signals(number).name
    assert result.returncode == 128 + number
    assert result.stderr == f"verl_uae: stopped by {name} before training began: there is nothing to save\n"


TWICE = """
import os, signal, sys, threading, time
import ray
from verl_uae.launch import driver

class State:
    def note(self): return ""
    def request_stop(self, reason): pass

class Destroyed:
    def __del__(self):
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            pass

def signals():
    for _ in range(2):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

driver.SAME_S, driver.END_S, driver.RunState, ray.is_initialized = 0.1, 3.0, State, lambda: True
if sys.argv[1] == "Ray hangs":
    ray.shutdown = lambda: time.sleep(300)
driver.StopSignals(300.0).listen()
threading.Thread(target=signals, daemon=True).start()
if sys.argv[1] == "a destructor ignores it":
    Destroyed()
time.sleep(300)
"""


@pytest.mark.parametrize("where", ["a wait", "a destructor ignores it", "Ray hangs"])
def test_a_second_signal_ends_the_command_whatever_is_in_its_way(where: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", TWICE, where], capture_output=True, text=True, timeout=190, check=False
    )
    assert result.returncode == 143
    assert "verl_uae: stopped at once by a second signal, SIGTERM" in result.stderr
