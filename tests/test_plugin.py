# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from verl_uae import plugin

LOAD_TIME = "import time, sys; start = time.process_time(); import verl_uae.plugin; print(time.process_time() - start)"


def run(code: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [forks.python(), "-c", code, *argv]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200, check=False
    )


def test_loading_costs_at_most_50_ms() -> None:
    """CPU time of our entry point in a fresh interpreter, that is with everything it pulls in charged to us."""
    command = [sys.executable, "-W", "ignore", "-c", LOAD_TIME]
    seconds = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(5)]
    assert statistics.median(seconds) <= 0.050, seconds


def test_import_verl_loads_us_and_nothing_heavy_with_us() -> None:
    code = (
        "import sys, verl, verl_uae.plugin as p; mine = [m for m in sys.modules if m.startswith('verl_uae')]\n"
        "print(sorted(mine)); print(p.FAILURES, p.REGISTERED); print('hydra' in sys.modules)"
    )
    modules, state, hydra = run(code).stdout.splitlines()
    assert modules == "['verl_uae', 'verl_uae.compat', 'verl_uae.config', 'verl_uae.plugin', 'verl_uae.versions']"
    assert (
        state == "{} ['hydra hook', 'platform', 'platform hook', 'trainer hook', 'names in the log']"
        and hydra == "False"
    )


BROKEN_TRAINER = """
import sys
sys.modules["verl_uae.stages.g4u.trainer"] = None
import verl.trainer.ppo.v1
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls
import verl_uae.plugin as plugin
print("failures", plugin.FAILURES)
try:
    get_trainer_cls("uae_g4u")(None)
except RuntimeError as error:
    print("trainer says:", error)
"""


def test_a_failing_registration_is_kept_logged_and_said_by_the_trainer() -> None:
    result = run(BROKEN_TRAINER)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "failures {'trainer classes': ModuleNotFoundError" in result.stdout
    assert "verl_uae: trainer classes could not be registered: ModuleNotFoundError" in result.stderr
    assert "trainer says: verl_uae could not load its trainers: ModuleNotFoundError" in result.stdout
    assert "verl_uae.stages.g4u.trainer" in result.stdout and "see: verl-uae doctor" in result.stdout


@pytest.mark.parametrize("missing", ["verl_uae.plugin.searchpath", "verl_uae.plugin.cpu_platform"])
def test_a_train_command_stops_with_the_reason(tmp_path: Path, missing: str) -> None:
    """The real command in an installation where a module of ours cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    command = [forks.python(), "-m", "verl.trainer.main_ppo", "--config-name", "uae_g4u", "hardware=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "VERL_PLATFORM": "cpu"}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 1, result.stderr[-2000:]
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("verl_uae failed to load, so this command cannot run: ") and missing in last
    assert "verl-uae doctor" in last


def test_other_processes_live_on(tmp_path: Path) -> None:
    code = "import sys; sys.modules['verl_uae.plugin.searchpath'] = None; import verl, hydra; print('alive')"
    result = run(code)
    assert result.stdout.split() == ["alive"] and "hydra search path could not be registered" in result.stderr


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (["python", "-m", "verl.trainer.main_ppo", "--config-name", "uae_g4u"], True),
        (["python", "-m", "verl.trainer.main_ppo", "--config-name=uae_g4u_megatron"], True),
        (["python", "-m", "verl.trainer.main_ppo", "-cn=uae_g4u"], True),
        (["python", "-m", "verl.trainer.main_ppo", "-cn", "uae_g4u"], True),
        (["python", "-m", "verl.trainer.main_ppo", "--config-name", "u4g_recipe", "uae.decoder.path=DECODER"], True),
        (["python", "-m", "verl.trainer.main_ppo", "--config-name", "u4g_recipe", "++uae.decoder.pth=DECODER"], True),
        (["python", "-m", "verl.trainer.main_ppo", "--config-dir", "recipes/uae/g4u/config"], False),
        (["python", "-m", "verl.trainer.main_ppo"], False),
        (["python", "-m", "verl.trainer.main_ppo", "trainer.project_name=uae_x"], False),
        (["python", "default_worker.py", "uae_g4u"], False),
        ([], False),
    ],
)
def test_is_train_command(argv: list[str], ours: bool) -> None:
    assert plugin.is_train_command(argv) is ours


REGISTERED = """
import verl.trainer.ppo.v1
import verl_uae.plugin as plugin
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
print(plugin.FAILURES, [TRAINER_REGISTRY[name].__module__ for name in plugin.TRAINERS])
"""


def test_every_trainer_name_registers() -> None:
    modules = [f"verl_uae.stages.{name.removeprefix('uae_')}.trainer" for name in plugin.TRAINERS]
    assert run(REGISTERED).stdout.splitlines()[-1] == f"{{}} {modules}"


@pytest.mark.parametrize("first", ["g4u.trainer", "unified.trainer", "common.pairs", "u4g.step"])
def test_a_program_may_import_ours_before_anything_of_verl(first: str) -> None:
    """Which imports verl's trainers, whose import in turn asks for all of ours."""
    result = run(
        f"import verl_uae.stages.{first}, verl_uae.plugin as plugin\n"
        "from verl_uae.stages.unified.trainer import UnifiedTrainer\n"
        "from verl.trainer.ppo.v1.trainer_base import get_trainer_cls\n"
        "print(plugin.FAILURES, get_trainer_cls('uae_unified') is UnifiedTrainer)"
    )
    assert result.stdout.splitlines()[-1] == "{} True", result.stderr[-2000:]


def test_the_platform_is_asked_for_when_verl_is_imported_and_not_before() -> None:
    code = (
        "import os; os.environ.pop('VERL_PLATFORM', None); import verl_uae.plugin\n"
        "os.environ['VERL_PLATFORM'] = 'cpu'; import verl\n"
        "from verl.plugin.platform import get_platform; print(get_platform().device_name)"
    )
    assert run(code).stdout.splitlines()[-1] == "cpu"
