# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fcntl
import functools
import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verl_uae import masters
from verl_uae.caption_server.weights import WeightReceiver
from verl_uae.masters import is_shared, turn, unshare
from verl_uae.waiting import saying

MIB = 2**20
#: Of these tests and the processes that they start: others of this user may run them too, and would find their masters.
RUN = int(os.environ.setdefault("UAE_TEST_MASTERS", str(os.getpid())))
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No master of this process from before, none behind."""

    def clear() -> None:
        masters._open.clear()
        masters._refused.cache_clear()

    clear()
    yield
    clear()


def model(seed: int = 0, width: int = 64, layers: int = 2) -> nn.Module:
    layer = [nn.Linear(width, width, bias=True) for _ in range(layers)]
    module = nn.Sequential(*layer, nn.BatchNorm1d(width)).requires_grad_(False)
    drawn = torch.Generator().manual_seed(1000 * RUN + seed)
    for parameter in module.parameters():
        parameter.copy_(torch.empty(parameter.shape).normal_(generator=drawn))
    return module


def shared(module: nn.Module) -> nn.Module:
    with turn() as share:
        share(module)
    return module


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module: nn.Module, wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, wanted[name]) for name, tensor in module.state_dict().items())


def memfds(process: int | str = "self") -> set[str]:
    """Masters that a process has open."""
    links = set()
    for entry in os.scandir(f"/proc/{process}/fd"):
        try:
            links.add(os.readlink(entry.path))
        except OSError:
            continue
    return {link for link in links if link.startswith("/memfd:verl_uae master ")}


def memory() -> dict[str, int]:
    """Bytes of this process: its own, and its part of what it shares."""
    rows = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    size = {name: int(value.split()[0]) * 1024 for name, value in rows.items()}
    return {"own": size["Private_Clean"] + size["Private_Dirty"], "part": size["Pss"]}


# ------------------------------------------------------------ several processes


def load(wanted: bool, steps: Any, answers: Any) -> None:
    """A rank that loads 48 MiB and looks how much it has."""
    torch.set_num_threads(1)
    model(seed=1, width=64)
    before = memory()
    with turn(wanted) as share:
        module = model(seed=3, width=2048, layers=3)
        share(module)
    digest = sum(float(parameter.double().sum()) for parameter in module.parameters())
    steps.wait(120)
    after = memory()
    steps.wait(120)
    answers.put((digest, {name: after[name] - before[name] for name in after}, len(memfds())))


def ranks(wanted: bool, count: int = 3) -> list[tuple[float, dict[str, int], int]]:
    steps, answers = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [SPAWN.Process(target=load, args=(wanted, steps, answers)) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        found = [answers.get(timeout=180) for _ in processes]
    finally:
        for process in processes:
            process.join(60)
            process.kill()
    return found


def test_processes_of_a_node_hold_weights_once() -> None:
    size = 3 * (2048 * 2048 + 2048) * 4
    together, apart = ranks(True), ranks(False)
    assert len({digest for digest, _, _ in together + apart}) == 1
    assert all(grown["own"] < 0.25 * size for _, grown, _ in together), together
    assert all(grown["own"] > 0.95 * size for _, grown, _ in apart), apart
    assert sum(grown["part"] for _, grown, _ in together) < 1.6 * size
    assert [count for _, _, count in together] == [1, 1, 1] and [count for _, _, count in apart] == [0, 0, 0]


def hold(ready: Any, end: Any) -> None:
    module = shared(model())
    ready.set()
    end.wait(120)
    # The kernel gives whoever writes pages of its own.
    module[0].weight.fill_(7.0)
    ready.set()
    time.sleep(120)


def test_what_one_writes_no_other_reads_and_what_is_killed_leaves_nothing() -> None:
    wanted, (ready, end) = state(model()), (SPAWN.Event(), SPAWN.Event())
    process = SPAWN.Process(target=hold, args=(ready, end))
    process.start()
    assert ready.wait(120) and process.pid is not None
    (link,) = memfds(process.pid)
    module = shared(model())
    assert is_shared(module[0].weight) and memfds() == {link}, "the other's, not a new one"
    ready.clear()
    end.set()
    assert ready.wait(60) and same(module, wanted)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert same(module, wanted) and same(shared(model()), wanted)


def die(ready: Any, how: str) -> None:
    if how == "in its turn":
        with turn():
            ready.set()
            time.sleep(120)
    written = masters._flat
    masters._flat = lambda tensor: (ready.set(), time.sleep(120)) if memfds() else written(tensor)
    shared(model())


@pytest.mark.parametrize("how", ["in its turn", "while it writes"])
def test_a_process_that_dies_holds_up_and_poisons_nobody(how: str) -> None:
    ready = SPAWN.Event()
    process = SPAWN.Process(target=die, args=(ready, how))
    process.start()
    assert ready.wait(120) and process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    start = time.monotonic()
    module = shared(model())
    assert time.monotonic() - start < 30
    assert is_shared(module[0].weight) and same(module, state(model()))
    process.join(60)


# ------------------------------------------------------------ one process


def test_equal_models_share_and_others_do_not() -> None:
    first, second, other = shared(model()), shared(model()), shared(model(seed=1))
    places = [each[0].weight.data_ptr() for each in (first, second, other)]
    assert places[0] == places[1] != places[2] and len(masters._open) == 2
    assert same(second, state(model())) and same(other, state(model(seed=1)))
    wider = nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16)).requires_grad_(False)
    assert is_shared(shared(wider)[0].weight) and len(masters._open) == 3


def test_one_number_that_the_name_does_not_depend_on_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    first, second = (nn.Linear(512, 512).requires_grad_(False) for _ in range(2))
    second.load_state_dict(first.state_dict())
    second.weight[0, 1] += 1.0
    assert masters._digest(dict(first.named_parameters())) == masters._digest(dict(second.named_parameters()))
    wanted = state(second)
    shared(first)
    with caplog.at_level(logging.WARNING):
        shared(second)
    assert is_shared(first.weight) and not is_shared(second.weight) and same(second, wanted)
    assert "has other weights than the master of its name" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_numbers_and_their_order_in_memory_stay(dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    module = nn.Module()
    whole = torch.empty(3, 5, 4, 2).normal_(generator=drawn)
    whole[0, 0, 0, 0] = float("nan")
    tensors = {
        "picture": whole.to(dtype).to(memory_format=torch.channels_last),
        "odd": whole[0, 0].to(dtype),
        "one": whole[1, 1, 1, 1].to(dtype),
        "turned": whole[0, 0].to(dtype).t(),
        "none": torch.empty(0, dtype=dtype),
    }
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor.clone(), requires_grad=False))
    before = {name: (tensor.stride(), tensor.clone()) for name, tensor in module.named_parameters()}
    shared(module)
    for name, tensor in module.named_parameters():
        stride, numbers = before[name]
        assert tensor.stride() == stride and torch.equal(tensor.nan_to_num(1.5), numbers.nan_to_num(1.5)), name
    assert [name for name, tensor in module.named_parameters() if is_shared(tensor)] == ["picture", "odd", "one"]


def test_what_trains_and_what_is_counted_is_not_shared() -> None:
    module = model()
    module[1].weight.requires_grad_(True)
    shared(module)
    assert is_shared(module[0].weight) and not is_shared(module[1].weight)
    assert not any(is_shared(buffer) for buffer in module.buffers())


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an accelerator, whose mappings can be written through; pinning fails."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)


def test_a_mapping_that_can_be_written_through(pinned: None, caplog: pytest.LogCaptureFixture) -> None:
    """That this is the case which the next tests need."""
    with caplog.at_level(logging.WARNING):
        first, second = shared(model()), shared(model())
    assert "travel from memory that is not pinned" in caplog.text
    first[0].weight.fill_(7.0)
    assert (second[0].weight == 7.0).all()


def test_weights_that_come_go_into_memory_of_their_own(pinned: None) -> None:
    first, second = shared(model()), shared(model())
    receiver = WeightReceiver(first)
    receiver.begin()
    receiver.load([(name, torch.full_like(tensor, 7.0)) for name, tensor in first.state_dict().items()])
    receiver.finish()
    assert (first[0].weight == 7.0).all() and same(second, state(model()))


def test_only_what_is_written_to_is_copied() -> None:
    module = shared(model())
    unshare(module, ["0.weight"])
    assert not is_shared(module[0].weight) and is_shared(module[1].weight) and same(module, state(model()))
    unshare(module)
    assert not any(is_shared(parameter) for parameter in module.parameters()) and same(module, state(model()))


def test_without_sharing_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masters, "_alone", lambda: pytest.fail("waits"))
    module = model()
    places = [parameter.data_ptr() for parameter in module.parameters()]
    with turn(False) as share:
        share(module)
    assert places == [parameter.data_ptr() for parameter in module.parameters()]


@pytest.mark.parametrize("lack", ["files in memory", "a turn", "a lock"])
def test_where_it_cannot_be_weights_stay_and_it_is_said_once(
    lack: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none" if lack == "a lock" else tmp_path))
    monkeypatch.setattr(masters, "PATIENCE_S", 0.3)
    monkeypatch.setattr(masters, "saying", functools.partial(saying, every_s=0.1))
    if lack == "files in memory":
        monkeypatch.delattr(os, "memfd_create")
    if lack == "a turn":
        other = os.open(tmp_path / f"verl_uae-{os.getuid()}.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(other, fcntl.LOCK_EX)
    with caplog.at_level(logging.WARNING):
        modules = [shared(model()), shared(model())]
    assert not any(is_shared(module[0].weight) for module in modules) and same(modules[1], state(model()))
    assert caplog.text.count("are in memory of this process alone") == 1
    if lack == "a turn":
        os.close(other)
        assert "waiting for another process of this node" in caplog.text


def test_an_error_in_a_turn_ends_it() -> None:
    with pytest.raises(KeyError), turn():
        raise KeyError
    assert is_shared(shared(model())[0].weight)
