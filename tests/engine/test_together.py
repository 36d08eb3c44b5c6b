# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Two gloo ranks whose own collectives give up much sooner than rank 0 writes."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from verl_uae.engines.export import publish_on_first_rank
from verl_uae.engines.together import together
from verl_uae.errors import CheckpointError, TrainingError

TIMEOUT_S, WRITE_S = 4.0, 10.0


def failure(call: Any) -> str:
    try:
        call()
    except (CheckpointError, TrainingError, RuntimeError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def slow_write(folder: Path) -> None:
    time.sleep(WRITE_S)
    (folder / "weights").write_text("written")


def broken_write(folder: Path) -> None:
    raise RuntimeError("the disk is gone")


def fails_on_one(rank: int) -> None:
    with together(TrainingError):
        if rank == 1:
            raise CheckpointError("base", "not found")


def interrupted_on_one(rank: int) -> None:
    with together(TrainingError):
        if rank == 0:
            raise KeyboardInterrupt("stopped")


def run_rank(rank: int, out: Path, started: Any, answers: Any) -> None:
    started.wait()
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2, timeout=timeout)
    problems = [
        failure(lambda: publish_on_first_rank(slow_write, out / "folder")),
        (out / "folder" / "weights").read_text(),
        failure(lambda: publish_on_first_rank(broken_write, out / "other")),
        failure(lambda: fails_on_one(rank)),
        failure(lambda: interrupted_on_one(rank)),
        # Their own collectives still work, with the short timeout.
        failure(lambda: dist.all_reduce(torch.ones(1))),
    ]
    answers.put((rank, problems))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    out = tmp_path_factory.mktemp("together")
    context = multiprocessing.get_context("spawn")
    # The ranks import for as long as they like before their timeouts count.
    started, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=run_rank, args=(rank, out, started, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    return found


def test_a_rank_waits_for_a_write_that_outlasts_its_collectives(ranks: dict[int, list[str]]) -> None:
    assert [ranks[rank][:2] for rank in (0, 1)] == [["", "written"]] * 2


def test_what_fails_on_one_rank_is_raised_on_all(ranks: dict[int, list[str]]) -> None:
    assert ranks[0][2].endswith("other: RuntimeError: the disk is gone")
    assert ranks[1][2].startswith("CheckpointError: ") and ranks[1][2].endswith("RuntimeError: the disk is gone")
    assert ranks[0][3] == "TrainingError: rank 1: CheckpointError: base: not found"
    assert ranks[1][3] == "CheckpointError: base: not found"


def test_an_interrupt_of_one_rank_lets_the_others_go(ranks: dict[int, list[str]]) -> None:
    assert ranks[0][4] == "KeyboardInterrupt: stopped"
    assert ranks[1][4] == "TrainingError: rank 0: KeyboardInterrupt: stopped"


def test_collectives_go_on_afterwards(ranks: dict[int, list[str]]) -> None:
    assert ranks[0][5] == ranks[1][5] == ""


def test_a_process_alone_waits_for_nobody() -> None:
    with together(TrainingError):
        pass
    with pytest.raises(ZeroDivisionError), together(TrainingError):
        raise ZeroDivisionError
