# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Real processes of real Ray actors."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import pytest
import ray

from tests.actors import Sleeper
from verl_uae.stages.common.supervisor import Process, processes_of


def wait_for(process: Process, *states: str) -> str:
    deadline = time.monotonic() + 30
    while process.state() not in states and time.monotonic() < deadline:
        time.sleep(0.05)
    return process.state()


@pytest.mark.usefixtures("ray_cluster")
def test_a_stopped_process_is_seen_and_ended() -> None:
    actor = ray.remote(num_cpus=0.1)(Sleeper).remote()
    (process,) = processes_of([actor])
    assert process.pid == ray.get(actor.pid.remote()) and process.state() in ("sleeping", "running")
    os.kill(process.pid, signal.SIGSTOP)
    assert wait_for(process, "stopped") == "stopped"
    call = actor.pid.remote()
    process.kill()
    assert wait_for(process, "gone") == "gone"
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(call, timeout=60)
    process.kill()


@pytest.mark.usefixtures("ray_cluster")
def test_a_number_that_was_given_out_again_is_another_process() -> None:
    actor = ray.remote(num_cpus=0.1)(Sleeper).remote()
    (process,) = processes_of([actor])
    older = dataclasses.replace(process, started=process.started - 1.0)
    older.kill()
    assert older.state() == "gone" and ray.get(actor.pid.remote()) == process.pid
    ray.kill(actor)


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_is_dead_has_no_process() -> None:
    actor = ray.remote(num_cpus=0.1)(Sleeper).remote()
    ray.get(actor.pid.remote())
    ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):
        processes_of([actor])
