# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def facts(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found in a process with VERL_PLATFORM=cpu."""
    out = tmp_path_factory.mktemp("probe") / "facts.json"
    result = _python("-m", "tests.engine.probe", str(tiny_models / "encoder"), str(out), timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="session")
def policy(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests.engine.policy_probe found on one rank, under "one", and on the first of two, under "two"; "folder" is
    where the two ranks wrote."""
    return _on_one_and_two_ranks(
        "tests.engine.policy_probe", tiny_models / "decoder", tmp_path_factory.mktemp("policy")
    )


@pytest.fixture(scope="session")
def supervised(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As ``policy``, of tests.engine.supervised_probe."""
    return _on_one_and_two_ranks("tests.engine.supervised_probe", tiny_models, tmp_path_factory.mktemp("supervised"))


@pytest.fixture(scope="session")
def captioner(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As ``policy``, of tests.engine.captioner_probe."""
    return _on_one_and_two_ranks("tests.engine.captioner_probe", tiny_models, tmp_path_factory.mktemp("captioner"))


def _on_one_and_two_ranks(module: str, models: Path, root: Path) -> dict[str, Any]:
    result = _python("-m", "tests.engine.launch", module, str(models), str(root), timeout=400)
    logs = "".join(log.read_text(errors="replace")[-3000:] for log in sorted(root.glob("*.log")))
    assert result.returncode == 0, result.stderr[-3000:] + logs
    facts = {name: json.loads((root / f"{name}_0.json").read_text()) for name in ("one", "two")}
    return {**facts, "folder": root / "two"}


def _python(*words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """A process of its own with VERL_PLATFORM=cpu, outside of any process group."""
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = [sys.executable, *words]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
