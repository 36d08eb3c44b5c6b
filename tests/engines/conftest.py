# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launch import launch, run


@pytest.fixture(scope="session")
def facts(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found in a process with VERL_PLATFORM=cpu."""
    out = tmp_path_factory.mktemp("probe") / "facts.json"
    result = run("-m", "tests.engines.probe", str(tiny_models / "captioner"), str(out), timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="session")
def policy(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests.engines.policy_probe found on one rank, under "one", and on the first of two, under "two"; "folder" is
    where the two ranks wrote."""
    return on_one_and_two_ranks(
        "tests.engines.policy_probe", tiny_models / "decoder", tmp_path_factory.mktemp("policy")
    )


@pytest.fixture(scope="session")
def supervised(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As ``policy``, of tests.engines.supervised_probe."""
    return on_one_and_two_ranks("tests.engines.supervised_probe", tiny_models, tmp_path_factory.mktemp("supervised"))


@pytest.fixture(scope="session")
def captioner(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As ``policy``, of tests.engines.captioner_probe."""
    return on_one_and_two_ranks("tests.engines.captioner_probe", tiny_models, tmp_path_factory.mktemp("captioner"))


def on_one_and_two_ranks(probe: str, models: Path, root: Path) -> dict[str, Any]:
    """What a probe found in a group of one rank, and the first of two, by the name of the group."""
    launch(probe, models, root, one=1, two=2)
    facts = {name: json.loads((root / f"{name}_0.json").read_text()) for name in ("one", "two")}
    return {**facts, "folder": root / "two"}
