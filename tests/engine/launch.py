# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a probe of this folder on one rank and, beside it, on two.

python -m tests.engine.launch PROBE MODELS ROOT

What the probe imports takes a processor longer than much of what it does; so one process imports it, and the ranks are
forks of that process. Their output goes to ``ROOT/one_0.log``, ``ROOT/two_0.log`` and ``ROOT/two_1.log``.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from types import ModuleType


def _rank(probe: ModuleType, models: str, out: Path, rank: int, size: int, port: int) -> None:
    log = os.open(out.with_name(f"{out.stem}_{rank}.log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    probe.main(models, str(out), str(rank), str(size), str(port))


def main(name: str, models: str, root: str) -> int:
    """Exit code 1 as soon as a rank has failed; the others then wait for it in vain."""
    probe = importlib.import_module(name)
    processes = []
    for stem, size in (("one", 1), ("two", 2)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(size):
            arguments = (probe, models, Path(root) / f"{stem}.json", rank, size, port)
            processes.append(multiprocessing.get_context("fork").Process(target=_rank, args=arguments, daemon=True))
            processes[-1].start()
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            return 1
        time.sleep(0.05)
    return int(any(process.exitcode for process in processes))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
