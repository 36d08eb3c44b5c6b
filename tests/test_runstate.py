# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import ray

from verl_uae.runstate import RunState


def test_driver_and_trainer_hear_each_other_across_processes(run_state: RunState) -> None:
    class Trainer:
        def hear(self) -> str | None:
            RunState().tell("step 3 is saved")
            return RunState().stop_reason()

        def useful(self) -> str | None:
            return RunState().useful()

    trainer = ray.remote(num_cpus=0.1)(Trainer).remote()
    assert ray.get(trainer.hear.remote()) is None and run_state.note() == "step 3 is saved"
    run_state.request_stop("SIGTERM")
    assert ray.get(trainer.hear.remote()) == "SIGTERM"
    run_state.request_stop("")
    assert run_state.stop_reason() is None
    assert ray.get(trainer.useful.remote()) is None
    run_state.tell_useful("{}")
    assert ray.get(trainer.useful.remote()) == "{}"
    ray.kill(trainer)


def test_without_ray_there_is_none_and_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a cluster of its own"))
    with pytest.raises(RuntimeError, match="does not run"):
        RunState()
