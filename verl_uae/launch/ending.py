# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""First and last words of a training command: whether anything will be saved, and what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from verl_uae.checkpoints.names import SUMMARY
from verl_uae.checkpoints.summary import RunSummary, duration, last_lines
from verl_uae.errors import UAEError


class EndingCallback(Callback):
    """Hydra callback of our configs, in the user's own process; the trainer's lines come through Ray among others."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say if nothing will be saved, and forget what an earlier run in the same folder reached."""
        self._started = time.monotonic()
        (Path(config.trainer.default_local_dir) / SUMMARY).unlink(missing_ok=True)
        if config.trainer.save_freq <= 0:
            sys.stderr.write(
                f"verl_uae: warning: nothing will be saved (trainer.save_freq={config.trainer.save_freq}); "
                "trainer.save_freq=N saves every N steps and at the end\n"
            )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Print what the run reached, after everything that Ray still has to say."""
        seconds = time.monotonic() - self._started
        # Nothing imports Ray here; where the job did, its processes end now, and their last lines come first.
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()
        done = job_return.status == JobStatus.COMPLETED
        sys.stderr.flush()
        sys.stdout.write("\n".join(ending(config, seconds, done=done)) + "\n")
        sys.stdout.flush()


def ending(config: DictConfig, seconds: float, *, done: bool) -> list[str]:
    """The last lines of a command.

    Args:
        config: composed configuration.
        seconds: that it took.
        done: whether the job came to its end.
    """
    folder, stage = str(config.trainer.default_local_dir), config.uae.stage
    try:
        summary = RunSummary.read(Path(folder))
    except UAEError as error:
        return [f"verl_uae: stage {stage}: {error}"]
    if summary is None:
        what = "done" if done else "FAILED before its first step"
        lines = [f"verl_uae: stage {stage} {what}, after {duration(seconds)}"]
        if done:
            lines.append(f"  {SUMMARY} is not in {folder} of this machine: the trainer ran on another")
        return lines
    return last_lines(summary, folder, seconds, done=done, save_freq=int(config.trainer.save_freq))
