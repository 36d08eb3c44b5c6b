# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Hydra callback that puts :mod:`verl_uae.launch.screen` behind the output of a training command."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from verl_uae.checkpoints.names import LOG
from verl_uae.launch import screen

#: Longest wait for the last lines, seconds.
END_S = 5.0


class ScreenCallback(Callback):
    """Around the job, outside all other callbacks: first at its start, last at its end."""

    _output: Output | None = None

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Divert the output from here on, where ``uae.screen`` says so."""
        if config.uae.screen == "short" or (config.uae.screen == "auto" and sys.stdout.isatty()):
            log = Path(config.trainer.default_local_dir) / LOG
            log.parent.mkdir(parents=True, exist_ok=True)
            sys.stderr.write(f"verl_uae: everything that is printed goes into {log}; uae.screen=all shows it here\n")
            self._output = Output(log)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Show all that comes after, such as the traceback of an error."""
        if self._output is not None:
            self._output.restore()


class Output:
    """Standard output and error of this process and of all that it starts, through the screen.

    Args:
        log: file that gets all of it, added at its end.
    """

    def __init__(self, log: Path) -> None:
        self._before = [os.dup(number) for number in (1, 2)]
        self._flush()
        # Of a session of its own: a signal to the group is for this process, which saves and then has last words.
        self._screen = subprocess.Popen(
            [sys.executable, "-I", screen.__file__, str(log)],
            stdin=subprocess.PIPE,
            stdout=self._before[0],
            start_new_session=True,
        )
        assert self._screen.stdin is not None
        for number in (1, 2):
            os.dup2(self._screen.stdin.fileno(), number)
        atexit.register(self.restore)

    def restore(self) -> None:
        """As before; once all that was written until now is shown."""
        if self._screen.stdin is None:
            return
        self._flush()
        for number, before in zip((1, 2), self._before, strict=True):
            os.dup2(before, number)
        with contextlib.suppress(BrokenPipeError), self._screen.stdin as pipe:  # Somebody killed it.
            pipe.write(f"\n{screen.END}\n".encode())
        self._screen.stdin = None
        try:
            self._screen.wait(END_S)
        except subprocess.TimeoutExpired:
            self._screen.kill()

    @staticmethod
    def _flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
