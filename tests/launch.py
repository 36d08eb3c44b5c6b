# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a probe, a module whose ``main`` is what one rank does, in process groups of its own.

python -m tests.launch PROBE MODELS ROOT NAME=RANKS ...

What the probe imports takes a processor longer than much of what it does; so one process imports it, and the ranks are
forks of that process. Rank R of group NAME calls ``main(MODELS, ROOT/NAME, R, RANKS, port)``, beside those of the other
groups; its output goes to ``ROOT/NAME_R.log``.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from tests import forks

REPOSITORY = Path(__file__).parents[1]


def run(*words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """``python WORDS``, as a fork, with VERL_PLATFORM=cpu, outside of any process group."""
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = [forks.python(), *words]
    return subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False
    )


def launch(probe: str, models: Path, root: Path, **ranks: int) -> None:
    """Run a probe in groups of that many ranks.

    Raises:
        AssertionError: a rank failed; with the ends of all outputs.
    """
    groups = [f"{name}={size}" for name, size in ranks.items()]
    result = run("-m", "tests.launch", probe, str(models), str(root), *groups, timeout=400)
    logs = "".join(log.read_text(errors="replace")[-3000:] for log in sorted(root.glob("*.log")))
    assert result.returncode == 0, result.stderr[-3000:] + logs


def _rank(probe: ModuleType, models: str, out: Path, rank: int, size: int, port: int) -> None:
    log = os.open(out.with_name(f"{out.name}_{rank}.log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    probe.main(models, str(out), str(rank), str(size), str(port))


def main(name: str, models: str, root: str, *groups: str) -> int:
    """Exit code 1 as soon as a rank has failed; the others then wait for it in vain."""
    gc.disable()  # What is imported stays: neither this process nor a fork of it need look through it for garbage.
    probe = importlib.import_module(name)
    gc.freeze()
    gc.enable()
    processes = []
    for group, size in ((group, int(size)) for group, _, size in (words.partition("=") for words in groups)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(size):
            arguments = (probe, models, Path(root, group), rank, size, port)
            processes.append(multiprocessing.get_context("fork").Process(target=_rank, args=arguments, daemon=True))
            processes[-1].start()
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            return 1
        time.sleep(0.05)
    return int(any(process.exitcode for process in processes))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
