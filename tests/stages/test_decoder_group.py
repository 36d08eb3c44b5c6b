# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Sharding and error texts; placement, deaths and restarts are run for real by tests/e2e."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from tests.actors import DecoderRank
from verl_uae.errors import DecoderError, describe
from verl_uae.stages.common.supervisor import processes_of
from verl_uae.stages.g4u.decoder_group import DecoderGroup, split_evenly


@pytest.mark.parametrize(("count", "parts"), [(0, 1), (1, 1), (7, 3), (8, 4), (2, 5), (64, 6), (1, 8)])
def test_split_evenly_covers_everything_once_and_evenly(count: int, parts: int) -> None:
    shards = split_evenly(count, parts)
    assert len(shards) == parts and [index for shard in shards for index in shard] == list(range(count))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_describe_is_the_first_line_of_the_cause(ray_cluster: None) -> None:
    @ray.remote(num_cpus=0.1)
    def fail() -> None:
        raise ArithmeticError("first line\nsecond line")

    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(fail.remote())
    assert describe(caught.value) == "ArithmeticError: first line"
    assert describe(ValueError()) == "ValueError: "


def group_of(workers: list[Any]) -> DecoderGroup:
    group = object.__new__(DecoderGroup)
    group.config = SimpleNamespace(timeout_s=60.0, max_restarts=1)  # type: ignore[assignment]
    group.group = SimpleNamespace(workers=workers)
    group.restarts, group._decoder_state = 0, ray.put("newest")
    group._processes, group._deaths = dict(enumerate(processes_of(workers))), Counter()
    return group


def test_a_rank_that_came_back_in_a_streamed_step_is_loaded_and_counted_once(ray_cluster: None) -> None:
    workers = [ray.remote(num_cpus=0.1, max_restarts=1)(DecoderRank).remote() for _ in range(2)]
    group = group_of(workers)
    group.revive_returned()
    assert group.restarts == 0 and ray.get(workers[1].state.remote()) == (False, "")
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(workers[1].die.remote())
    for _ in range(2):
        group.revive_returned()
        assert group.restarts == 1
    assert ray.get([worker.state.remote() for worker in workers]) == [(False, ""), (True, "newest")]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(workers[1].die.remote())
    started = time.monotonic()
    with pytest.raises(DecoderError, match=r"could not be started again \(uae\.decoder\.max_restarts=1\)"):
        group.revive_returned()
    assert time.monotonic() - started < 50


def test_a_rank_that_died_unseen_gets_new_weights_when_it_is_back(ray_cluster: None) -> None:
    workers = [ray.remote(num_cpus=0.1, max_restarts=1)(DecoderRank).remote() for _ in range(2)]
    group = group_of(workers)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(workers[0].die.remote())
    group.load_decoder_state(ray.put("after a turn"))
    states = ray.get([worker.state.remote() for worker in workers])
    assert [weights for _, weights in states] == ["after a turn"] * 2 and group.restarts <= 1
    with pytest.raises(
        DecoderError, match="could not take the decoder policy's weights: ValueError: weights of another"
    ):
        group.load_decoder_state(ray.put("odd"))


def test_a_rank_that_died_idle_draws_with_the_weights_that_were_sent(ray_cluster: None) -> None:
    workers = [ray.remote(num_cpus=0.1, max_restarts=1)(DecoderRank).remote() for _ in range(2)]
    group = group_of(workers)
    group.load_decoder_state(ray.put("after a turn"))
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(workers[1].die.remote())
    # Ray has started it again, and nobody has noticed.
    assert wait_for_state(workers[1]) == (False, "")
    shares: list[Any] = [SimpleNamespace(keys=["a"])] * 2
    for _ in range(2):
        assert group._attempt(shares) == {}
    assert ray.get([worker.drawn_with.remote() for worker in workers]) == [["after a turn"] * 2] * 2
    assert group.restarts == 1 and group._processes[1] == processes_of([workers[1]])[0]


def test_a_rank_that_comes_back_gets_the_captioner_before_it_draws(ray_cluster: None) -> None:
    workers = [ray.remote(num_cpus=0.1, max_restarts=2)(DecoderRank).remote() for _ in range(2)]
    group = group_of(workers)
    group.config.max_restarts = 2
    sent: list[Any] = []

    def send(name: str, actor: Any) -> bool:
        sent.append((name, actor, ray.get(actor.state.remote()), ray.get(actor.drawn_with.remote())))
        return len(sent) == 1

    group.send_captioner = send
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(workers[1].die.remote())
    assert wait_for_state(workers[1]) == (False, "")
    assert group._attempt([SimpleNamespace(keys=["a"])] * 2) == {}  # type: ignore[list-item]
    # Behind its models and the decoder policy's weights.
    assert sent == [("decoder rank 1", workers[1], (True, "newest"), [])]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(workers[1].die.remote())
    with pytest.raises(DecoderError, match="decoder rank 1: died again while it took the captioner's language model"):
        group.revive_returned()


def test_a_rank_that_takes_too_long_costs_its_share_alone(ray_cluster: None) -> None:
    workers = [ray.remote(num_cpus=0.1, max_restarts=1)(DecoderRank).remote() for _ in range(2)]
    group = group_of(workers)
    group.config.timeout_s = 20.0
    late, shares = group._processes[1], [SimpleNamespace(keys=["a"]), SimpleNamespace(keys=["hang"])]
    assert group._attempt(shares) == {1: ("timeout", "decoder rank 1: no answer in 20.0 s, killed")}  # type: ignore[arg-type]
    assert late.state() == "gone" and group.restarts == 1
    assert ray.get([worker.state.remote() for worker in workers]) == [(False, ""), (True, "newest")]
    assert ray.get(workers[0].drawn_with.remote()) == [""]


def wait_for_state(worker: Any) -> tuple[bool, str]:
    while True:
        try:
            return ray.get(worker.state.remote())
        except ray.exceptions.ActorUnavailableError:
            time.sleep(0.2)


def test_a_stopped_rank_of_the_streamed_schedule_is_replaced(ray_cluster: None) -> None:
    workers = [ray.remote(num_cpus=0.1, max_restarts=1)(DecoderRank).remote() for _ in range(2)]
    group = group_of(workers)
    group.config.timeout_s = 20.0
    stopped = group._processes[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    group.revive_returned()
    assert group.restarts == 1 and group._processes[0] != stopped and stopped.state() == "gone"
    assert ray.get(workers[0].state.remote()) == (True, "newest")


def test_weights_are_sent_to_all_ranks_at_once(ray_cluster: None, tmp_path: Path) -> None:
    group_of([ray.remote(num_cpus=0.1)(DecoderRank).remote() for _ in range(2)]).load_decoder_state(
        ray.put(str(tmp_path))
    )
    assert len(list(tmp_path.iterdir())) == 2
