# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from verl_uae.errors import ConfigError
from verl_uae.machine import (
    RAY_FOLDER_KEY,
    SOCKET_PATH_MAX,
    FittingBatch,
    checked_device,
    data_cache,
    home_folder,
    hub_cache,
    is_out_of_memory,
    ray_folder,
)


def test_a_device_that_is_here() -> None:
    assert checked_device("cpu") == torch.device("cpu")
    assert checked_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cpu:x", "meta", "xla", "hpu"])
def test_one_that_is_not_is_named_with_the_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--device: {name}.*; give .*cpu") as caught:
        checked_device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


class Model:
    """Has memory for so many samples."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def __call__(self, rows: slice) -> list[int]:
        self.tried.append(rows.stop - rows.start)
        if self.tried[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return list(range(rows.start, rows.stop))


def test_every_sample_is_answered_once_and_in_order_at_the_size_that_fits() -> None:
    model, batch = Model(room=3), FittingBatch(8, "pictures")
    answers = [row for part in batch.map(10, model) for row in part]
    assert answers == list(range(10)) and model.tried == [8, 4, 2, 2, 2, 2, 2]


def test_the_size_that_fits_is_kept_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = Model(room=2), FittingBatch(8, "pictures", "uae.decoder.vae_batch_size")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            batch.map(4, model)
    assert model.tried == [4, 2, 2, 2, 2, 2, 2] and batch.size == 2
    (line,) = caplog.messages
    assert "up to 4 pictures" in line and "2 fit" in line and "uae.decoder.vae_batch_size=2" in line


def test_a_single_sample_that_does_not_fit_is_an_error() -> None:
    model, batch = Model(room=0), FittingBatch(4, "pictures")
    with pytest.raises(torch.OutOfMemoryError):
        batch.map(4, model)
    assert model.tried == [4, 2, 1]


def test_a_part_that_is_filled_up_takes_the_memory_of_a_whole_one() -> None:
    batch, tried = FittingBatch(8, "pictures"), []

    def call(rows: slice) -> int:
        tried.append(batch.size)
        if batch.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows.start

    assert batch.map(1, call, filled=True) == [0] and tried == [8, 4, 2]


def test_a_single_sample_that_does_not_fit_makes_no_batch_smaller() -> None:
    model, batch = Model(room=0), FittingBatch(4, "pictures")
    with pytest.raises(torch.OutOfMemoryError):
        batch.map(1, model)
    assert model.tried == [1] and batch.size == 4


def test_other_errors_change_nothing() -> None:
    batch = FittingBatch(4, "pictures")

    def fail(rows: slice) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        batch.map(4, fail)
    assert batch.size == 4


def test_what_torch_itself_raises_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("out of memory"))


#: What Ray adds to its folder: /session_2026-01-01_00-00-00_000000_PID/sockets/plasma_store.
SESSION = len("/session_2026-01-01_00-00-00_000000_") + len("/sockets/plasma_store")


def folder_of(length: int) -> str:
    return "/tmp/" + "r" * (length - len("/tmp/"))


@pytest.fixture
def longest() -> int:
    """Bytes of the longest folder in which a Ray of this process can live."""
    return SOCKET_PATH_MAX - SESSION - len(str(os.getpid()))


def test_the_limit_is_the_one_at_which_ray_fails(longest: int) -> None:
    assert ray_folder(folder_of(longest)) == folder_of(longest)
    with pytest.raises(ConfigError, match=f"has {longest + 1} bytes.* of at most {longest} bytes") as refused:
        ray_folder(folder_of(longest + 1))
    assert refused.value.key == RAY_FOLDER_KEY
    # In a process of its own: this one may be connected to Ray.
    code = (
        "import os, ray\n"
        f"folder = '/tmp/' + 'r' * ({SOCKET_PATH_MAX - SESSION + 1 - len('/tmp/')} - len(str(os.getpid())))\n"
        "ray.init(address='local', _temp_dir=folder, include_dashboard=False, num_cpus=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert f"AF_UNIX path length cannot exceed {SOCKET_PATH_MAX} bytes" in done.stderr


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_variable_that_set_the_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, longest: int, variable: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, folder_of(longest - len("/ray") + 1))
    with pytest.raises(
        ConfigError, match=f"set {variable} to a folder of at most {longest - len('/ray')} bytes"
    ) as refused:
        ray_folder()
    assert refused.value.key == variable
    monkeypatch.setenv(variable, folder_of(longest - len("/ray")))
    assert ray_folder().endswith("/ray")
    monkeypatch.setenv(variable, "/proc/none")
    with pytest.raises(ConfigError, match="cannot be written"):
        ray_folder()


@pytest.mark.parametrize(("home", "problem"), [("/no/such/home", "is not there"), ("/proc", "cannot be written")])
def test_a_home_that_is_none(monkeypatch: pytest.MonkeyPatch, home: str, problem: str) -> None:
    monkeypatch.setenv("HOME", home)
    with pytest.raises(ConfigError, match=f"^HOME: {home}.*{problem}"):
        home_folder()


def test_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder() == str(tmp_path) and not list(tmp_path.iterdir())


def test_a_cache_of_the_hub_that_is_only_read_must_be_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_cache() == str(tmp_path / "hub") and not list(tmp_path.iterdir())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc")
    with pytest.raises(ConfigError, match=r"^HF_HUB_CACHE or HF_HOME: /proc: /proc cannot be written"):
        hub_cache()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_cache() == "/proc (offline)"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/none")
    with pytest.raises(ConfigError):
        hub_cache()


def test_the_cache_of_data_files_is_there_or_can_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert data_cache() == tmp_path / "datasets" / "verl_uae" and not list(tmp_path.iterdir())
    monkeypatch.setenv("HF_DATASETS_CACHE", "/proc/none")
    with pytest.raises(
        ConfigError, match=r"^HF_DATASETS_CACHE or HF_HOME: /proc/none/verl_uae: /proc cannot be written"
    ):
        data_cache()
    monkeypatch.delenv("HF_DATASETS_CACHE")
    monkeypatch.setattr(constants, "HF_HOME", "/proc/none")
    with pytest.raises(ConfigError, match="/proc/none/datasets/verl_uae"):
        data_cache()
