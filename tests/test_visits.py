# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Weights that visit an accelerator. ``meta`` stands in for one: what is there has no numbers, so a copy back fails.
Its streams are played by a module that writes down what is asked of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from verl_uae import visits
from verl_uae.visits import ahead, arrive, visit


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_what_visits_comes_back_as_it_was_without_a_copy() -> None:
    module = model()
    before, places = state(module), {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    for _ in range(3):
        visit(module, "meta")
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
        visit(module, "meta")
        visit(module, "cpu")
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        assert places == {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    visit(module, "cpu")


def test_what_is_written_on_the_host_is_what_visits_next() -> None:
    module = model()
    visit(module, "meta")
    visit(module, "cpu")
    module[0].weight.zero_()
    visit(module, "meta")
    visit(module, "cpu")
    assert not module[0].weight.any()


def test_what_is_written_on_the_device_is_copied_back() -> None:
    module = model()
    visit(module, "meta")
    dict(module.named_buffers())["1.running_mean"].add_(1.0)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        visit(module, "cpu")


def test_a_part_of_two_visitors_stays_where_it_is_needed() -> None:
    whole = model()
    part, before = whole[0], state(whole)
    for first, second in ((whole, part), (part, whole)):
        visit(first, "meta")
        visit(second, "meta")
        visit(part, "cpu")
        visit(whole, "cpu")
        assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def test_memory_that_runs_out_on_the_way_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model()
    before, move = state(module), nn.BatchNorm1d._apply

    def full(self: nn.Module, *args: object) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    # Submodules go one after the other.
    monkeypatch.setattr(nn.BatchNorm1d, "_apply", full)
    with pytest.raises(torch.OutOfMemoryError):
        visit(module, "meta")
    monkeypatch.setattr(nn.BatchNorm1d, "_apply", move)
    assert module[0].weight.is_meta
    visit(module, "cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# ------------------------------------------------------------ in a stream of their own


class Stream:
    def __init__(self, played: Accelerator, name: str) -> None:
        self.played, self.name = played, name

    def wait_stream(self, other: Stream) -> None:
        self.played.said.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Event) -> None:
        self.played.said.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, played: Accelerator) -> None:
        self.played, self.name = played, f"event {next(played.numbers)}"

    def record(self, stream: Stream) -> None:
        self.played.said.append(f"{self.name} behind {stream.name}")


class Accelerator:
    """Of one device; the stream of the caller is called main."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.numbers = iter(range(1, 100))
        self.now = Stream(self, "main")

    def Stream(self) -> Stream:
        return Stream(self, "side")

    def Event(self) -> Event:
        return Event(self)

    def current_stream(self) -> Stream:
        return self.now

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    def take(self) -> list[str]:
        said, self.said = self.said, []
        return said


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    found = Accelerator()
    monkeypatch.setattr(torch, "meta", found, raising=False)
    visits._side.cache_clear()
    yield found
    visits._side.cache_clear()


def test_what_is_queued_behind_a_visit_comes_after_the_copy(played: Accelerator) -> None:
    module = model()
    visit(module, "meta")
    assert played.take() == ["side waits for main", "event 1 behind side", "main waits for event 1"]
    # It is there: whoever asks waits for the copy, which may be another thread's.
    visit(module, "meta")
    assert played.take() == ["main waits for event 1"]


def test_memory_is_the_callers_and_copies_are_made_beside(played: Accelerator) -> None:
    seen: list[tuple[str, str]] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if (name := call.overloadpacket.__name__) in ("empty_like", "copy_", "_to_copy"):
                seen.append((name, played.now.name))
            return call(*args, **(kwargs or {}))

    module = nn.Linear(3, 4).requires_grad_(False)
    with Seen():
        visit(module, "meta")
    assert seen == [("empty_like", "main"), ("copy_", "side")] * 2


def test_what_is_needed_first_arrives_first(played: Accelerator) -> None:
    first, second = model(), model()
    with ahead():
        visit(first, "meta")
        visit(second, "meta")
    assert played.take() == [
        "side waits for main",
        "event 1 behind side",
        "side waits for main",
        "event 2 behind side",
    ]
    arrive(first[0])
    assert played.take() == ["main waits for event 1"]
    # Every stream waits by itself.
    with played.stream(Stream(played, "beside")):
        arrive(second, first)
    assert played.take() == ["beside waits for event 2", "beside waits for event 1"]
    visit(model(), "meta")
    assert played.take()[-1] == "main waits for event 3", "outside as before"


def test_memory_is_not_let_go_while_it_is_copied_to(played: Accelerator) -> None:
    module = model()
    with ahead():
        visit(module, "meta")
    played.take()
    visit(module, "cpu")
    assert played.take() == ["main waits for event 1"]
    arrive(module)
    assert played.take() == []


def test_what_ran_out_of_memory_is_waited_for_too(played: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    module, before = model(), nn.BatchNorm1d._apply

    def full(self: nn.Module, *args: object) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nn.BatchNorm1d, "_apply", full)
    with pytest.raises(torch.OutOfMemoryError), ahead():
        visit(module, "meta")
    monkeypatch.setattr(nn.BatchNorm1d, "_apply", before)
    played.take()
    visit(module, "cpu")
    assert played.take() == ["main waits for event 1"]


def test_nothing_is_asked_of_a_device_without_streams() -> None:
    module = model()
    visit(module, "meta")
    arrive(module)
    visit(module, "cpu")
