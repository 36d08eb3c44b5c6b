# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What Ray has not started is told of, in a real local Ray that is too small."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from tests import forks
from verl_uae.config import yaml_files
from verl_uae.errors import ConfigError
from verl_uae.launch import callbacks
from verl_uae.launch.callbacks import PlacementCallback, cluster_address, join, this_machine, waiting_places, watch


@pytest.fixture
def small_ray() -> Iterator[None]:
    # Another file's, which starts it again where it needs it.
    ray.shutdown()
    ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_actors_and_placement_groups_without_a_place_are_named(small_ray: None) -> None:
    class StorageUnit:
        def ready(self) -> bool:
            return True

    unit = ray.remote(num_cpus=1)(StorageUnit)
    first = unit.remote()
    assert ray.get(first.ready.remote()) and not waiting_places()
    waiting = [unit.remote() for _ in range(3)]
    group = ray.util.placement_group([{"CPU": 3, "GPU": 1}] * 2, strategy="STRICT_PACK", name="global_pool0")
    lines: queue.Queue[str] = queue.Queue()
    stop = watch(lines.put, every_s=1.0)
    line = lines.get(timeout=120)
    stop()
    assert not watching()
    assert "placement group global_pool0: 2 x (1 GPU, 3 CPU)" in line
    assert "3 x actor " in line and "StorageUnit" in line and line.endswith("its cluster has 1 CPU, free: nothing")
    del waiting, group


def watching() -> bool:
    return any(thread.name == "verl_uae placement" for thread in threading.enumerate())


def test_the_watch_ends_with_the_job_and_before_ray(monkeypatch: pytest.MonkeyPatch, compose: Any) -> None:
    monkeypatch.setattr(callbacks, "check_machine", lambda *_: None)
    callback = PlacementCallback()
    callback.on_run_start(compose("hardware=cpu", "preset=scenes", "++ray_kwargs.ray_init.address=local"))
    assert watching()
    callback.on_job_end(OmegaConf.create(), JobReturn())
    assert not watching()
    # At the end Hydra goes from the last callback to the first.
    order = list(OmegaConf.load(yaml_files()["uae_base"]).hydra.callbacks)
    assert order.index("verl_uae_ending") < order.index("verl_uae_placement") < order.index("verl_uae_driver")
    # What counts beside the run ends while Ray is there, which the first of these ends.
    assert order.index("verl_uae_placement") < order.index("verl_uae_estimate")


def test_a_watch_outlives_a_ray_that_goes_down(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = queue.Queue[int]()

    def going_down() -> dict[str, str]:
        looks.put(1)
        raise ray.exceptions.RaySystemError("the GCS is gone")

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(callbacks, "waiting_places", going_down)
    stop = watch(pytest.fail, every_s=0.01)
    assert looks.get(timeout=60) + looks.get(timeout=60) == 2
    stop()


def test_accelerators_are_those_that_torch_sees() -> None:
    """The cores are held against those of a Ray in tests/test_compat.py."""
    import torch

    machine = this_machine()
    assert machine.accelerators == torch.cuda.device_count()
    assert (not machine.accelerators and torch.version.cuda is None) == ("is built for CPUs" in machine.why_none)


def test_a_cluster_that_is_named_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(value: str | None) -> str | None:
        return cluster_address(OmegaConf.create({"ray_kwargs": {"ray_init": {"address": value}}}))

    assert address("local") is None and address("ray://head:10001") == "ray://head:10001"
    assert address("10.0.0.1:6379") == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert address(None) == "10.0.0.2:6379" and address("auto") == "10.0.0.2:6379"
    with pytest.raises(ConfigError, match=r"^ray_kwargs\.ray_init\.address: nonsense: "):
        address("nonsense")


def test_a_cluster_that_is_joined_has_its_own_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to be told of them; and a cluster that nobody named is not joined by accident."""
    init = {"address": None, "num_cpus": 32, "num_gpus": 8, "include_dashboard": False}
    config = OmegaConf.create({"ray_kwargs": {"ray_init": init}})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"^ray_kwargs\.ray_init\.num_cpus: .*RAY_ADDRESS=10\.0\.0\.1:6379"):
        join(config, "10.0.0.1:6379")
    assert config.ray_kwargs.ray_init.num_cpus == 32
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    join(config, "10.0.0.1:6379")
    assert config.ray_kwargs.ray_init == {**init, "num_cpus": None, "num_gpus": None}


def test_the_gpu_command_without_a_gpu_leaves_before_ray_starts(tiny_models: Path, tmp_path: Path) -> None:
    if this_machine().accelerators:
        pytest.skip("this machine has an accelerator")
    command = [forks.python(), "-m", "verl.trainer.main_ppo", "--config-name", "uae_g4u", "preset=scenes"]
    command += [
        f"uae_home={tiny_models}",
        "++ray_kwargs.ray_init.address=local",
        "hardware=gpu",
        "trainer.n_gpus_per_node=1",
        f"hydra.run.dir={tmp_path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("verl_uae: impossible here: trainer.device: is cuda, and torch sees no accelerator")
    assert "hardware=cpu" in last and "Traceback" not in done.stderr and "Started a local Ray" not in done.stderr
