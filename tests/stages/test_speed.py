# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from verl_uae.errors import StoppedError
from verl_uae.stages.common import hosts, speed, supervised, supervisor
from verl_uae.stages.common.hosts import HostMemory, HostWatch, read_memory
from verl_uae.stages.common.speed import UsefulWork, device_memory, gpus, keep_from_collector, speed_metrics
from verl_uae.stages.common.supervisor import Supervisor
from verl_uae.stages.unified.trainer import Alternation, UnifiedTrainer

GIB = 2**30


def test_pictures_per_second_and_gpu_and_the_use_of_each_model() -> None:
    captioner = {"caption": 1.0, "update_actor": 2.0, "update_weights": 0.5}
    overlapping = {"sample": 3.0, "decode": 1.0, "score": 1.0, "draw": 3.5}
    assert speed_metrics({"step": 10.0, **captioner, **overlapping}, 64, 4) == {
        "perf/pictures_per_s_per_gpu": pytest.approx(1.6),
        "perf/busy/captioner": pytest.approx(0.35),
        "perf/busy/decoder": pytest.approx(0.35),
    }
    assert speed_metrics({"step": 4.0, "learn": 3.0}, 8, 1) == {
        "perf/pictures_per_s_per_gpu": 2.0,
        "perf/busy/decoder": 0.75,
    }
    assert speed_metrics({"caption": 1.0}, 8, 1) == {}


def test_use_of_the_peak_by_hand() -> None:
    """Two seconds at the peak without captions and 10 ms for a token, in what took eight seconds."""
    turns = {"g4u": {"caption": (2.0, 0.01), "ref": (1.0, 0.0)}, "u4g": {"draw": (3.0, 0.0)}}
    work = UsefulWork.from_text(UsefulWork(turns, 200.0).to_text())
    assert work == UsefulWork(turns, 200.0)
    seconds = {"caption": 8.0, "ref": 0.0, "draw": 4.0, "step": 20.0}
    assert work.metrics("g4u", seconds, 100.0) == {"perf/mfu/caption": pytest.approx(3.0 / 8.0)}
    for unknown in (None, 0.0):
        assert work.metrics("g4u", seconds, unknown) == {"perf/mfu/caption": pytest.approx(4.0 / 8.0)}
    assert work.metrics("u4g", seconds, 100.0) == {"perf/mfu/draw": 0.75}
    assert work.metrics("pretrain", seconds, 100.0) == {}


class Device:
    """What torch says of an accelerator."""

    def __init__(self, peak: int) -> None:
        self.peak = peak

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = 1 * GIB


def test_peak_memory_of_the_fullest_rank_since_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"first": Device(3 * GIB), "second": Device(7 * GIB), "dead": Device(9 * GIB)}

    def called(name: str) -> Any:
        def remote(call: Callable[[Any], float | None]) -> Any:
            monkeypatch.setattr(speed, "get_torch_device", lambda: devices[name])
            return ray.exceptions.RayActorError() if name == "dead" else call(None)

        return SimpleNamespace(__ray_call__=SimpleNamespace(remote=remote))

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(speed.ray, "wait", lambda calls, num_returns, timeout: (calls, []))
    monkeypatch.setattr(speed.ray, "get", get)
    monkeypatch.setattr(speed, "get_device_name", lambda: "cuda")
    workers = [called(name) for name in devices]
    assert device_memory(workers) == {"perf/device_memory_gib/decoder": 7.0}
    assert device_memory(workers) == {"perf/device_memory_gib/decoder": 1.0}
    assert device_memory([]) == {} and device_memory(workers[2:]) == {}
    monkeypatch.setattr(speed, "get_device_name", lambda: "cpu")
    assert device_memory(workers) == {}


def test_a_step_of_the_unified_stage_is_measured_by_its_own_work(
    monkeypatch: pytest.MonkeyPatch, compose: Callable[..., Any], tiny_overrides: list[str]
) -> None:
    told = iter([None, UsefulWork({"g4u": {"draw": (2.0, 0.0)}, "u4g": {"draw": (3.0, 0.01)}}, 50.0).to_text()])
    monkeypatch.setattr(supervised, "device_memory", lambda ranks: {"ranks": list(ranks)})
    trainer = object.__new__(UnifiedTrainer)
    trainer.config = compose(*tiny_overrides, name="uae_unified")
    trainer.schedule = Alternation(1, 1)
    trainer.decoders = SimpleNamespace(workers=["draws"])
    trainer.learner = SimpleNamespace(group=SimpleNamespace(workers=["learns"]))
    state, hosts_of = SimpleNamespace(useful=lambda: next(told)), SimpleNamespace(metrics=dict)
    trainer.supervisor = SimpleNamespace(state=state, hosts=hosts_of)
    logged: list[dict[str, Any]] = []
    for trainer.global_steps in (1, 2, 3):
        logged.append({"caption/tokens/mean": 100.0})
        trainer.note_speed(logged[-1], {"step": 20.0, "draw": 8.0}, 4)
        trainer.config.trainer.device = "cuda"
    # The first step is over before the command has counted; on a CPU nobody is asked for the memory of a device.
    assert [step.get("perf/mfu/draw") for step in logged] == [None, 0.5, 0.25]
    assert [step.get("ranks") for step in logged] == [None, *[["draws", "learns"]] * 2]


@pytest.mark.parametrize(("pool", "count"), [("colocated", 8), ("own", 8 + 6)])
def test_gpus_of_a_pool_of_its_own_count(compose: Callable[..., Any], pool: str, count: int) -> None:
    ranks = ["trainer.n_gpus_per_node=4", "trainer.nnodes=2", "uae.decoder.n_gpus_per_node=3", "uae.decoder.nnodes=2"]
    assert gpus(compose(*ranks, f"uae.decoder.pool={pool}")) == count


@pytest.mark.parametrize("old", [False, True])
def test_a_container_counts_by_its_own_limit(tmp_path: Path, old: bool) -> None:
    folder = tmp_path / "memory" if old else tmp_path
    folder.mkdir(exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    for name, size in zip(names, (2 * GIB, 1.75 * GIB), strict=True):
        (folder / name).write_text(f"{int(size)}\n")
    # Files that were read, once or more often, are let go before a process is ended.
    read, total = {"inactive_file": GIB // 2, "active_file": GIB // 4}, "total_" if old else ""
    rows = [f"{total}{name} {size}\n" for name, size in read.items()]
    (folder / "memory.stat").write_text("anon 5\n" + "".join(rows))
    found = read_memory("here", tmp_path)
    assert (found.used, found.limit, found.share) == (GIB, 2 * GIB, 0.5)


@pytest.mark.parametrize("limit", ["max", str(2**62)])
def test_a_container_without_a_limit_is_the_machine(
    tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "NEAR", 0.0)
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("1000")
    (tmp_path / "memory.stat").write_text("inactive_file 0")
    found = read_memory("here", tmp_path)
    memory = psutil.virtual_memory()
    assert found.limit == memory.total and found.used == pytest.approx(memory.total - memory.available, rel=0.2)
    assert len(found.largest) == 3 and found.largest[0][1] >= found.largest[1][1] > 0


def test_a_full_host_ends_the_run_at_a_boundary_and_says_who_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    full = HostMemory("abcdef012345", 95 * GIB, 100 * GIB, (("ray::DecoderWorker", 60 * GIB),))
    monkeypatch.setattr(hosts, "read_memory", lambda node: full)
    monkeypatch.setattr(supervisor, "POLL_S", 0.01)
    watching = Supervisor(60.0, "key", None, 0.96)
    watching._look()
    watching.boundary("nothing")
    watching.host_memory = 0.93
    watching._look()
    with pytest.raises(StoppedError, match=r"node abcdef01 uses 95\.0 of 100\.0 GiB .* ray::DecoderWorker 60\.0 GiB"):
        watching.boundary("the next step")


def test_the_fullest_moment_of_a_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, sizes = HostWatch(), iter((10, 40, 20, 5))
    monkeypatch.setattr(hosts, "read_memory", lambda node: HostMemory(node, next(sizes) * GIB, 100 * GIB, ()))
    assert watch.metrics() == {}
    for _ in range(3):
        watch.look()
    assert watch.metrics() == {"perf/host_memory_share": 0.4, "perf/host_memory_gib": 40.0}
    watch.look()
    assert watch.metrics() == {"perf/host_memory_share": 0.05, "perf/host_memory_gib": 5.0}


def test_the_collector_does_not_look_again_through_what_a_process_holds(ray_cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class Process:
        def frozen(self) -> int:
            return gc.get_freeze_count()

    process: Any = Process.remote()
    before = gc.get_freeze_count(), ray.get(process.frozen.remote())
    try:
        keep_from_collector([process])
        after = gc.get_freeze_count(), ray.get(process.frozen.remote())
        assert all(now > earlier + 10_000 for earlier, now in zip(before, after, strict=True))
    finally:
        gc.unfreeze()
