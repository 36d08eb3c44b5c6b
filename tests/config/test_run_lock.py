# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Between processes: a record lock does not keep its own process out."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from verl_uae.config import run_folder
from verl_uae.config.run_folder import check_free, hold
from verl_uae.errors import ConfigError

#: A run: holds its folder, says so, and goes on in a child of its own that outlives it, as a data loader's worker may.
RUN = """
import os, sys, time
from pathlib import Path
from verl_uae.config.run_folder import hold
hold(Path(sys.argv[1]))
if os.fork():
    print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_run_is_refused_by_name_while_the_first_lives_and_not_after(
    running: subprocess.Popen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    monkeypatch.setattr(run_folder, "PATIENCE_S", 0.3)
    for take in (check_free, hold):
        with pytest.raises(ConfigError, match=rf"default_local_dir: {root} is in use by process {running.pid} on "):
            take(root)
    # The same folder by another path.
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ConfigError, match="is in use"):
        check_free(tmp_path / "link")
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    monkeypatch.setattr(run_folder, "_held", {})
    check_free(root)
    hold(root)
    # Through the handle that is held: closing another one would end the lock.
    assert f"process {os.getpid()} on".encode() in os.pread(run_folder._held[root].fileno(), 200, 0)
    hold(root)
    check_free(root)
    second = subprocess.run([sys.executable, "-c", RUN, str(root)], capture_output=True, text=True, check=False)
    assert second.returncode != 0 and f"is in use by process {os.getpid()}" in second.stderr


def test_a_folder_nobody_has_used_is_free_and_not_made(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"default_local_dir: .*file/run cannot be written"):
        hold(tmp_path / "file" / "run")


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder, "_held", {})
    monkeypatch.setattr("fcntl.lockf", no_locks)
    with caplog.at_level(logging.WARNING):
        hold(tmp_path)
    assert "nothing keeps a second run out" in caplog.text
