# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A loop shaped like verl's around real Ray actors that die, hang and are stopped; training runs are in tests/e2e."""

from __future__ import annotations

import errno
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from omegaconf import OmegaConf

from tests.actors import Worker
from tests.composing import composed
from verl_uae.checkpoints.step import complete_steps
from verl_uae.errors import CheckpointError, RewardError, StoppedError, WorkerError
from verl_uae.stages.common import supervisor
from verl_uae.stages.common.supervised import SupervisedTrainer
from verl_uae.stages.common.supervisor import processes_of

pytestmark = pytest.mark.usefixtures("run_state")


class Places:
    """A data loader."""

    def __init__(self) -> None:
        self.next = 0

    def state_dict(self) -> dict:
        return {"next": self.next}


class VerlLoop:
    """What verl's trainer does in ``fit``."""

    def on_step_begin(self) -> None: ...

    def on_step_end(self) -> None: ...

    def fit(self, _: Any) -> None:
        for self.global_steps in range(1, 4):
            self.on_step_begin()
            self.step()
            if self.config.trainer.save_freq > 0 and self.global_steps % self.config.trainer.save_freq == 0:
                self._save_checkpoint()
            self.on_step_end()


def start_workers() -> tuple[Any, Any]:
    server, rank = (ray.remote(num_cpus=0.1)(Worker).remote() for _ in range(2))
    processes_of([server, rank])
    return server, rank


shared_workers = functools.cache(start_workers)


class Run(SupervisedTrainer, VerlLoop):
    """Weights are a number; a step adds one to them.

    Args:
        trouble: called in step 3, before or after the update.
        own: its processes are its own, to be stopped and killed.
    """

    def __init__(
        self,
        root: Path,
        trouble: Callable[[Run], None],
        *,
        after: bool = False,
        own: bool = False,
        **settings: Any,
    ) -> None:
        self.config = composed("hardware=cpu", "preset=scenes", f"uae_home={root}")
        trainer = {"default_local_dir": str(root), "save_freq": 10, "resume_mode": "auto", **settings}
        OmegaConf.update(self.config, "trainer", trainer)
        self.config.uae.supervision.stall_timeout_s = 5.0
        self.keep_configuration()
        self.global_steps, self.weights, self.seen = 0, 0, 0
        self.train_dataloader: Any = Places()
        self.trouble, self.after = trouble, after
        self.server, self.rank = start_workers() if own else shared_workers()

    def watched(self) -> Iterator[tuple[str, Any]]:
        yield "caption server 0", self.server
        yield "captioner rank 0", self.rank

    def training_prompts(self) -> list[Any]:
        return []

    def side_state(self) -> dict:
        return {"seen": self.seen}

    def restore_side_state(self, state: dict) -> None:
        self.seen = state["seen"]

    def step(self) -> None:
        self.train_dataloader.next += 4
        self.seen += 4
        if self.global_steps == 3 and not self.after:
            self.trouble(self)
        with self.updating():
            self.weights += 1
        if self.global_steps == 3 and self.after:
            self.trouble(self)

    def _save_checkpoint(self) -> None:
        with self.saving():
            folder = self._step_folder()
            folder.mkdir(parents=True, exist_ok=True)
            text = f"{self.weights} {self.train_dataloader.state_dict()['next']} {self.seen}"
            (folder / "weights").write_text(text)
            self._finish_step()

    @property
    def note(self) -> str:
        assert self.supervisor.state is not None
        return self.supervisor.state.note() or ""


def saved(root: Path) -> dict[int, str]:
    return {step: (root / f"global_step_{step}" / "weights").read_text() for step in complete_steps(root)}


def refuse(_: Run) -> None:
    raise RewardError("batch", "nothing has a reward")


def stumble(_: Run) -> None:
    raise KeyError("bug")


@pytest.mark.parametrize(("trouble", "error"), [(refuse, RewardError), (stumble, KeyError)])
def test_the_step_before_is_kept_whatever_ends_a_step(tmp_path: Path, trouble: Any, error: type) -> None:
    run = Run(tmp_path, trouble)
    with pytest.raises(error):
        run.fit(None)
    # Weights, place in the data and statistics of step 2, though step 3 had drawn its batch.
    assert saved(tmp_path) == {2: "2 8 8"}
    assert run.note == f"step 2 is saved in {tmp_path}/global_step_2; the same command goes on from there"


def test_a_step_that_is_over_is_kept_itself(tmp_path: Path) -> None:
    with pytest.raises(RewardError):
        Run(tmp_path, refuse, after=True).fit(None)
    assert saved(tmp_path) == {3: "3 12 12"}


def test_weights_between_two_steps_are_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, refuse, save_freq=2, resume_mode="disable")

    def break_update(self: Run) -> None:
        with self.updating():
            refuse(self)

    run.trouble = break_update
    with pytest.raises(RewardError):
        run.fit(None)
    assert saved(tmp_path) == {2: "2 8 8"}
    assert run.note == (
        "the weights were in the middle of an update, so they were not saved; the newest complete step is "
        f"{tmp_path}/global_step_2; the same command with trainer.resume_mode=auto goes on from there"
    )


def test_who_saves_nothing_is_told_so(tmp_path: Path) -> None:
    run = Run(tmp_path, refuse, save_freq=-1)
    with pytest.raises(RewardError):
        run.fit(None)
    assert saved(tmp_path) == {} and run.note.startswith("nothing was saved, since trainer.save_freq=-1")


def test_a_request_to_stop_is_honoured_at_the_next_boundary(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda run: run.supervisor.state.request_stop("SIGTERM"))
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        run.fit(None)
    assert saved(tmp_path) == {2: "2 8 8"}, "before the update of step 3"


def test_a_death_that_the_loop_meets_is_named(tmp_path: Path) -> None:
    def kill_and_call(run: Run) -> None:
        ray.kill(run.server)
        # It can still answer a call or two.
        while True:
            ray.get(run.server.work.remote())

    with pytest.raises(WorkerError, match="caption server 0 died"):
        Run(tmp_path, kill_and_call, own=True).fit(None)
    assert saved(tmp_path) == {2: "2 8 8"}


def test_a_death_that_ended_the_run_does_not_interrupt_its_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a real model take longer to write than the supervisor waits between two looks."""
    monkeypatch.setattr(supervisor, "POLL_S", 0.1)
    monkeypatch.setattr(supervisor, "NOTICE_S", 0.2)

    class SlowDisk(Run):
        def _save_checkpoint(self) -> None:
            time.sleep(1.5)
            super()._save_checkpoint()

    def wait_for_ever(run: Run) -> None:
        processes_of([run.server])[0].kill()
        threading.Event().wait()

    with pytest.raises(WorkerError, match="caption server 0: died while the run waited for"):
        SlowDisk(tmp_path, wait_for_ever, own=True).fit(None)
    assert saved(tmp_path) == {2: "2 8 8"}


@pytest.mark.parametrize("wait", ["poll", "ray", "lock"])
def test_a_death_ends_a_wait_for_what_will_never_come(tmp_path: Path, wait: str) -> None:
    """An agent-loop worker that dies leaves nobody who would say that its captions do not come."""

    def wait_for_ever(run: Run) -> None:
        processes_of([run.server])[0].kill()
        if wait == "poll":
            while True:
                time.sleep(0.05)
        elif wait == "ray":
            ray.get(run.rank.hang.remote())
        else:
            threading.Event().wait()

    run = Run(tmp_path, wait_for_ever, own=True)
    run.config.uae.supervision.stall_timeout_s = 600.0
    started = time.monotonic()
    with pytest.raises(WorkerError, match="caption server 0: died while the run waited for"):
        run.fit(None)
    assert time.monotonic() - started < 60 and saved(tmp_path) == {2: "2 8 8"}
    if wait == "ray":
        ray.kill(run.rank)


def test_a_stopped_rank_ends_the_run_by_name(tmp_path: Path) -> None:
    def stop(run: Run) -> None:
        os.kill(processes_of([run.rank])[0].pid, signal.SIGSTOP)
        ray.get(run.rank.work.remote())

    run = Run(tmp_path, stop, after=True, own=True)
    process = processes_of([run.rank])[0]
    try:
        with pytest.raises(WorkerError) as caught:
            run.fit(None)
    finally:
        process.kill()
    text = str(caught.value)
    assert "took longer than uae.supervision.stall_timeout_s=5 s" in text
    assert f"captioner rank 0 ({process}) is stopped" in text
    assert saved(tmp_path) == {3: "3 12 12"}


def test_nobody_waits_for_a_stopped_rank_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharded(Run):
        def trained_ranks(self) -> Iterator[Any]:
            yield self.rank

    def stop(run: Run) -> None:
        os.kill(processes_of([run.rank])[0].pid, signal.SIGSTOP)
        ray.get(run.rank.work.remote())

    monkeypatch.setattr("verl_uae.stages.common.supervised.ANSWER_S", 2.0)
    run = Sharded(tmp_path, stop, own=True)
    process = processes_of([run.rank])[0]
    try:
        with pytest.raises(WorkerError, match="is stopped"):
            run.fit(None)
    finally:
        process.kill()
    assert saved(tmp_path) == {} and run.note.startswith(
        "step 2 cannot be saved: a rank that holds its weights is dead"
    )


def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    class Full(Run):
        def _save_checkpoint(self) -> None:
            with self.saving():
                raise RuntimeError("basic_ios::clear: iostream error")

    with pytest.raises(CheckpointError) as caught:
        Full(tmp_path, refuse, save_freq=1).fit(None)
    text = str(caught.value)
    assert "global_step_1: cannot be saved: RuntimeError: basic_ios::clear: iostream error" in text
    assert "MiB are free on its disk: make room, or choose another trainer.default_local_dir" in text


def test_a_save_that_fails_hides_no_error(tmp_path: Path) -> None:
    class Failing(Run):
        def _save_checkpoint(self) -> None:
            with self.saving():
                raise OSError(errno.EIO, "Input/output error")

    run = Failing(tmp_path, refuse)
    with pytest.raises(RewardError):
        run.fit(None)
    assert run.note.startswith("step 2 could not be saved (CheckpointError: ") and "no complete step" in run.note
