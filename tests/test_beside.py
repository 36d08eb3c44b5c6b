# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""An accelerator is played by a module that writes down what is asked of its streams."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from verl_uae.beside import Beside, in_this_stream
from verl_uae.reward.deadline import Guard

CPU = torch.device("cpu")


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_work_is_done_in_another_thread_which_ends_with_it() -> None:
    go, caller = threading.Event(), threading.current_thread()

    def work() -> tuple[bool, int]:
        assert go.wait(60.0)
        return threading.current_thread() is caller, 7

    job = Beside(CPU).start("besides", work)
    assert len(threads("besides")) == 1
    go.set()
    assert job.result() == (False, 7) and threads("besides") == []
    assert job.result() == (False, 7)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_it_raises_is_raised_where_it_is_asked_for_with_its_traceback(error: type[BaseException]) -> None:
    def far_away() -> None:
        raise error("lost")

    job = Beside(CPU).start("besides", lambda: far_away())
    job.wait()
    with pytest.raises(error, match="lost") as caught:
        job.result()
    assert "far_away" in [frame.name for frame in traceback.extract_tb(caught.tb)] and threads("besides") == []


class Stream:
    def __init__(self, module: Any, name: str) -> None:
        self.module, self.name = module, name

    def wait_stream(self, other: Any) -> None:
        self.module.said.append(f"{self.name} waits for {other.name}")


class Accelerator:
    """As ``torch.cuda``: the current stream is per thread, and a new thread has the default one."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.made = 0
        self.started = True
        self._default = Stream(self, "default")
        self._current = threading.local()

    def Stream(self) -> Stream:
        self.made += 1
        return Stream(self, f"side {self.made}")

    def is_initialized(self) -> bool:
        return self.started

    def current_stream(self) -> Stream:
        assert self.started
        return getattr(self._current, "stream", self._default)

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    module = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: module)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    return module


def test_a_stream_of_its_own_behind_what_is_queued_and_before_what_follows(accelerator: Accelerator) -> None:
    beside = Beside(torch.device("cuda"))

    def work() -> str:
        accelerator.said.append(f"work in {accelerator.current_stream().name}")
        # As the scorer asks its terms.
        return str(Guard(timeout_s=60.0).run("term", lambda: accelerator.current_stream().name).value)

    for _ in range(2):
        accelerator.said.clear()
        assert beside.start("besides", work).result() == "side 1", "terms compute where their pictures are"
        assert accelerator.said == ["side 1 waits for default", "work in side 1", "default waits for side 1"]
    assert accelerator.made == 1 and accelerator.current_stream().name == "default"


def test_an_accelerator_that_a_process_does_not_use_is_left_alone(accelerator: Accelerator) -> None:
    accelerator.started = False
    assert in_this_stream(lambda: 3)() == 3


def test_a_host_has_no_streams(accelerator: Accelerator) -> None:
    assert Beside(CPU).start("besides", lambda: 3).result() == 3 and accelerator.said == []
