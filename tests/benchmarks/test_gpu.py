# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark's cells run without a GPU, one that fails costs itself, and a stopped run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


def _bench() -> gpu.Bench:
    return gpu.Bench("cpu", torch.float32)


def test_the_documented_smoke_runs_every_kind_of_cell(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--sizes", "tiny", "--threads", "1"]
    # As a user's shell has it: nobody tells verl that there is no accelerator.
    environment = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, env=environment, check=True, capture_output=True)
    lines = {line["cell"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert list(lines) == list(gpu.cells(["tiny"], smoke=True))
    assert {line["status"] for line in lines.values()} == {"ok"}
    assert lines["gate/tiny"]["ratio_is_one"]
    assert max(lines["parity"][name] for name in ("condition", "velocity", "decode", "encode")) == 0.0
    assert lines["u4g/tiny/micro=8"]["samples"] == 16
    assert sum(lines["trace/tiny"]["shares"].values()) <= 1.0


@pytest.mark.parametrize("length", [24, 40])
def test_the_text_has_the_length_that_is_counted(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The engine has no part in it.
    monkeypatch.setattr(gpu, "VerlEngine", lambda *_, **__: None)
    ours = _bench().ours("tiny", text_tokens=length)
    assert ours.work.size.text_tokens == length
    assert {condition.states.shape[1] for condition in ours.encode(0)} == {length}


def test_a_cell_that_fails_costs_itself() -> None:
    def broken(bench: gpu.Bench) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    def too_large(bench: gpu.Bench) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    failed, full = (gpu.run_cell(name, cell, _bench()) for name, cell in (("a", broken), ("b", too_large)))
    assert failed["status"] == "failed"
    assert "no such kernel" in failed["error"] and "broken" in failed["traceback"]
    assert full["status"] == "out of memory"


def test_what_is_done_is_not_done_again_and_the_budget_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    chosen = {name: (lambda bench, name=name: ran.append(name) or {"answer": 1.0}) for name in ("one", "two")}
    monkeypatch.setattr(gpu, "cells", lambda sizes, smoke: chosen)
    out = tmp_path / "sub" / "gpu.jsonl"
    arguments = ["--device", "cpu", "--sizes", "tiny", "--threads", str(torch.get_num_threads()), "--out", str(out)]
    gpu.main([*arguments, "--budget", "-1"])
    assert ran == [] and "budget" in capsys.readouterr().out
    gpu.main([*arguments, "--cells", "two"])
    gpu.main(arguments)
    assert ran == ["two", "one"]
    assert [json.loads(line)["cell"] for line in out.read_text().splitlines()] == ["two", "one"]
