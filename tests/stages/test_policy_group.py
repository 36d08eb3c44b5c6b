# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The pieces without Ray; the group as a whole is run by tests/e2e/test_u4g.py."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from tests.actors import Gathering, Rank
from verl_uae.errors import DecoderError
from verl_uae.stages.common import group
from verl_uae.stages.common.group import collect, interleave
from verl_uae.stages.u4g.group import PolicyGroup


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shares_of_the_ranks_come_back_in_order(ranks: int) -> None:
    items = list(range(7))
    assert interleave([items[rank::ranks] for rank in range(ranks)], 7) == items


def act(*ranks: str) -> list[str]:
    workers = [ray.remote(num_cpus=1, max_restarts=0)(Rank).remote() for _ in ranks]
    try:
        return collect([worker.act.remote(what) for worker, what in zip(workers, ranks, strict=True)], "improve")
    finally:
        for worker in workers:
            ray.kill(worker)


@pytest.mark.usefixtures("ray_cluster")
def test_answers_keep_the_order_of_the_ranks() -> None:
    assert act("a", "b", "c") == ["a", "b", "c"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_dead_rank_is_named_though_the_others_wait_for_it() -> None:
    started = time.monotonic()
    with pytest.raises(DecoderError, match="decoder rank 1: died in improve"):
        act("hang", "die")
    assert time.monotonic() - started < 60


@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_that_raises_is_heard_though_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "GRACE_S", 1.0)
    with pytest.raises(ValueError, match="gradient of another shape"):
        act("hang", "raise")


def weights_of(*dies: bool) -> Any:
    workers = [ray.remote(num_cpus=1)(Gathering).remote(rank, dead) for rank, dead in enumerate(dies)]
    group = object.__new__(PolicyGroup)
    group.group = SimpleNamespace(workers=workers)
    try:
        return ray.get(group.state_ref())
    finally:
        for worker in workers:
            ray.kill(worker)


@pytest.mark.usefixtures("ray_cluster")
def test_weights_are_handed_on_by_reference() -> None:
    assert weights_of(False, False) == {"weight": 7}


@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_that_dies_while_weights_are_gathered_is_named() -> None:
    with pytest.raises(DecoderError, match="decoder rank 1: died in decoder_state"):
        weights_of(False, True)
