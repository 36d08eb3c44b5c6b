# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The notebook runs on a model folder as it stands, and what it shows is what its cells make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import build_model, build_world
from verl_uae import UAEPipeline

NOTEBOOK = Path(__file__).parents[2] / "examples/model.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world = build_world(tmp_path / "outputs/quickstart")
    build_model(world)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells("code"):
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert isinstance(names["pipe"], UAEPipeline) and len(names["captions"]) == len(names["pictures"]) == 6
    assert len(names["own"]) == len(names["other"]) == 6
    assert all(0 <= value <= 1 for value in (*names["own"], *names["other"]))
    assert "own caption" in capsys.readouterr().out


def test_it_was_run_from_the_first_cell_to_the_last() -> None:
    """On the model of the quickstart: what a reader sees of it without running it."""
    shown = cells("code")
    assert [cell["execution_count"] for cell in shown] == list(range(1, len(shown) + 1))
    outputs = [output for cell in shown for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not [output for output in outputs if output.get("name") == "stderr" or output["output_type"] == "error"]
    assert "/tmp" not in NOTEBOOK.read_text(encoding="utf-8") and "/root" not in NOTEBOOK.read_text(encoding="utf-8")
