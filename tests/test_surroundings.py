# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from verl_uae.errors import ConfigError
from verl_uae.surroundings import RAY_FOLDER_KEY, SOCKET_PATH_MAX, data_cache, home_folder, hub_cache, ray_folder

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
