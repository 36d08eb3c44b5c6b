# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Two gloo ranks whose own collectives give up much sooner than rank 0 writes."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.launch import launch
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


def main(models: str, out: str, number: str, size: str, port: str) -> None:
    """What one rank meets, written as JSON."""
    rank, folder = int(number), Path(models)
    timeout, address = timedelta(seconds=TIMEOUT_S), f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=int(size), timeout=timeout)
    problems = [
        failure(lambda: publish_on_first_rank(slow_write, folder / "folder")),
        (folder / "folder" / "weights").read_text(),
        failure(lambda: publish_on_first_rank(broken_write, folder / "other")),
        failure(lambda: fails_on_one(rank)),
        failure(lambda: interrupted_on_one(rank)),
        # Their own collectives still work, with the short timeout.
        failure(lambda: dist.all_reduce(torch.ones(1))),
    ]
    Path(f"{out}_{number}.json").write_text(json.dumps(problems))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    out = tmp_path_factory.mktemp("together")
    launch("tests.engines.test_together", out, out, two=2)
    return [json.loads((out / f"two_{rank}.json").read_text()) for rank in range(2)]


def test_a_rank_waits_for_a_write_that_outlasts_its_collectives(ranks: list[list[str]]) -> None:
    assert [ranks[rank][:2] for rank in (0, 1)] == [["", "written"]] * 2


def test_what_fails_on_one_rank_is_raised_on_all(ranks: list[list[str]]) -> None:
    assert ranks[0][2].endswith("other: RuntimeError: the disk is gone")
    assert ranks[1][2].startswith("CheckpointError: ") and ranks[1][2].endswith("RuntimeError: the disk is gone")
    assert ranks[0][3] == "TrainingError: rank 1: CheckpointError: base: not found"
    assert ranks[1][3] == "CheckpointError: base: not found"


def test_an_interrupt_of_one_rank_lets_the_others_go(ranks: list[list[str]]) -> None:
    assert ranks[0][4] == "KeyboardInterrupt: stopped"
    assert ranks[1][4] == "TrainingError: rank 0: KeyboardInterrupt: stopped"


def test_collectives_go_on_afterwards(ranks: list[list[str]]) -> None:
    assert ranks[0][5] == ranks[1][5] == ""


def test_a_process_alone_waits_for_nobody() -> None:
    with together(TrainingError):
        pass
    with pytest.raises(ZeroDivisionError), together(TrainingError):
        raise ZeroDivisionError
