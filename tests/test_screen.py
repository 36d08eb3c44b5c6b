# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from verl_uae.launch.screen import END, Chooser, follow, opened

TASK, DECODER = "\x1b[36m(TaskRunnerV1 pid=12)\x1b[0m ", "\x1b[36m(DecoderWorker pid=7, ip=10.0.0.2)\x1b[0m "
TIME = "2026-11-30 18:46:01,904"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"{TASK}INFO:{TIME}:verl_uae.stages.common.supervised:step 2/3: reward 0.4", "step 2/3: reward 0.4"),
        (f"{DECODER}INFO:{TIME}:verl_uae.stages.g4u.decoder_worker:rank 0: 64 samples in 0.3 s", None),
        (f"{DECODER}WARNING:{TIME}:verl_uae.chain.draw:picture 3 failed", "warning: picture 3 failed"),
        (f"{DECODER}WARNING:{TIME}:transfer_queue.utils.common:target_num_threads 8", None),
        (f"[{TIME}][verl_uae.estimate.run][INFO] - uae.x=1: it fits", "uae.x=1: it fits"),
        (f"[{TIME}][other][ERROR] - no", None),
        (f"{TASK}step:1 - reward/score/mean:0.5 - " + "perf:1 - " * 400, None),
        (f"{TASK}Training Progress:  33%|███| 1/3 [00:01<00:03]\rTraining Progress:  66%|█████| 2/3", None),
        ("verl_uae: starting Ray", "verl_uae: starting Ray"),
        ("ray init kwargs: {}", None),
        ("  use_critic=need_critic(config),", None),
        ("(raylet) A worker died: it used too much memory", "(raylet) A worker died: it used too much memory"),
        ("", None),
    ],
)
def test_people_see_what_they_wait_for(line: str, shown: str | None) -> None:
    assert Chooser().shown(line) == shown


def test_a_block_of_ours_is_whole_and_ends() -> None:
    chooser = Chooser()
    lines = ["verl_uae:", "  stage  g4u", "  output  RUN", "noise", "  not ours", f"{TASK}  not ours", "verl_uae: done"]
    assert [line for line in lines if chooser.shown(line)] == [*lines[:3], lines[-1]]


def test_lines_of_ours_behind_a_traceback_are_whole() -> None:
    chooser = Chooser()
    lines = [
        "Traceback (most recent call last):",
        "  File",
        "ValueError: x",
        "verl_uae: " + "x" * 1000,
        "verl_uae: report",
    ]
    lines += [f"  line {number}" for number in range(20)]
    assert [chooser.shown(line) for line in lines] == lines


def test_a_traceback_is_shown_with_its_message_and_what_others_say_meanwhile_is_not() -> None:
    chooser = Chooser()
    lines = [
        f"{TASK}Traceback (most recent call last):",
        f'{TASK}  File "x.py", line 1, in <module>',
        f"{DECODER}Loading weights: 100%",
        f"{TASK}    raise ValueError('x')",
        f"{TASK}",
        f"{TASK}ValueError: x",
        f"{TASK}  and what to do",
        f"{DECODER}Loading weights: 100%",
        f"{TASK}in two lines",
    ]
    shown = [line for line in lines if chooser.shown(line) is not None]
    assert shown == [line for line in lines if line.startswith(TASK)]
    chatter = [chooser.shown(f"{TASK}{'x' * 4000}") for _ in range(100)]
    assert 0 < sum(line is not None for line in chatter) < 12, "it does not go on for ever"
    assert max(len(line or "") for line in chatter) <= 400
    assert chooser.shown(f"{TASK}INFO:{TIME}:verl_uae.x:step 2/3") == "step 2/3"
    assert chooser.shown("Traceback (most recent call last):") and chooser.shown("KeyError: 'y'")


def test_workers_that_fail_at_once_are_all_shown() -> None:
    first, second = (f"\x1b[36m(DecoderWorker pid={pid})\x1b[0m " for pid in (7, 8))
    lines = [f"{who}Traceback (most recent call last):" for who in (first, second)]
    lines += [f'{who}  File "x.py", line 1, in <module>' for who in (first, second)]
    lines += [f"{first}ValueError: one", f"{second}KeyError: 'two'"]
    chooser = Chooser()
    assert all(chooser.shown(line) for line in lines)


@pytest.mark.parametrize(
    "line", ["*** SIGSEGV received at time=1 on cpu 0 ***", "Fatal Python error: Segmentation fault"]
)
def test_a_process_that_dies_is_seen(line: str) -> None:
    chooser = Chooser()
    assert chooser.shown(f"{DECODER}{line}") and chooser.shown(f'{DECODER}  File "x.py", line 1 in f')


class FullDisk(io.BytesIO):
    """Takes one line."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.getvalue():
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_everything_is_in_the_log_until_the_end_is_said_and_a_full_disk_ends_the_log_alone() -> None:
    lines = ["noise", "verl_uae: one", "more noise", "verl_uae: two"]
    source = "".join(f"{line}\n" for line in [*lines, END, "after"]).encode()
    log, screen = io.BytesIO(), io.BytesIO()
    follow(io.BytesIO(source), log, screen)
    assert log.getvalue().decode().splitlines() == lines
    assert screen.getvalue().decode().splitlines() == ["verl_uae: one", "verl_uae: two"]
    log, screen = FullDisk(), io.BytesIO()
    follow(io.BytesIO(source), log, screen)
    shown = screen.getvalue().decode().splitlines()
    assert len(shown) == 3 and "No space left" in shown[0] and shown[1:] == ["verl_uae: one", "verl_uae: two"]


def test_without_a_log_the_screen_goes_on(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    screen = io.BytesIO()
    log = opened(str(tmp_path / "log"), screen)
    assert log is None
    follow(io.BytesIO(b"noise\nverl_uae: one\n"), log, screen)
    first, second = screen.getvalue().decode().splitlines()
    assert first.startswith("verl_uae: there is no log (") and second == "verl_uae: one"


COMMAND = """
import os, signal, subprocess, sys
from omegaconf import OmegaConf
from verl_uae.launch.output import ScreenCallback
config = OmegaConf.create({"uae": {"screen": sys.argv[1]}, "trainer": {"default_local_dir": sys.argv[2]}})
callback = ScreenCallback()
callback.on_job_start(config)
# As a scheduler does it.
signal.signal(signal.SIGTERM, lambda *_: None)
os.killpg(0, signal.SIGTERM)
print("chatter")
if callback._output is not None:
    # A process that outlives the job holds the pipe.
    subprocess.Popen(["sleep", "60"])
subprocess.run("echo verl_uae: of another process; echo chatter of a library >&2", shell=True)
callback.on_job_end(config, None)
print("last words")
"""


@pytest.mark.parametrize(
    ("screen", "terminal", "short"),
    [("short", False, True), ("auto", False, False), ("auto", True, True), ("all", True, False)],
)
def test_a_job_is_short_on_a_terminal_and_whole_elsewhere(
    tmp_path: Path, screen: str, terminal: bool, short: bool
) -> None:
    command = [sys.executable, "-c", COMMAND, screen, str(tmp_path)]
    if terminal:
        ours, theirs = pty.openpty()
        subprocess.run(command, stdout=theirs, stderr=theirs, check=True, timeout=60, start_new_session=True)
        os.close(theirs)
        told = b""
        while part := _read(ours):
            told += part
    else:
        told = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=50, start_new_session=True
        ).stdout
    lines = told.decode().splitlines()
    assert lines[-1] == "last words" and "verl_uae: of another process" in lines
    assert ("chatter" in lines) == ("chatter of a library" in lines) == (not short)
    log = tmp_path / "uae_log.txt"
    assert log.exists() == short
    if short:
        assert {"chatter", "chatter of a library"} <= set(log.read_text().splitlines()) and str(log) in lines[0]


def _read(number: int) -> bytes:
    try:
        return os.read(number, 4096)
    except OSError:
        # Nobody writes to the terminal any more.
        return b""
