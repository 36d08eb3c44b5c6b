# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Deadlines of the loop; deaths and requests to stop, with real actors, are in test_supervised.py."""

from __future__ import annotations

import time

import pytest

from verl_uae.errors import WorkerError
from verl_uae.stages.common.supervisor import Supervisor


def test_progress_and_a_phase_with_its_own_limit_keep_a_run_alive() -> None:
    supervisor = Supervisor(2.0, "uae.supervision.stall_timeout_s")
    with supervisor.guarding():
        for _ in range(4):
            time.sleep(1.0)
            supervisor.progress("a step")
        with supervisor.phase("the captions", 60.0, "uae.rollout.timeout_s"):
            time.sleep(4.0)
    with (
        pytest.raises(WorkerError, match=r"the captions took longer than uae\.rollout\.timeout_s=1 s"),
        supervisor.guarding(),
        supervisor.phase("the captions", 1.0, "uae.rollout.timeout_s"),
    ):
        time.sleep(60)
    supervisor.close()


def test_ctrl_c_outside_of_a_fault_stays_what_it_is() -> None:
    supervisor = Supervisor(60.0, "uae.supervision.stall_timeout_s")
    with pytest.raises(KeyboardInterrupt), supervisor.guarding():
        raise KeyboardInterrupt
    supervisor.close()
