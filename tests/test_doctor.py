# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from verl_uae import doctor
from verl_uae.doctor import Finding, Report, render


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "verl_uae.cli", "doctor"]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


def line(output: str, name: str) -> str:
    return next(line for line in output.splitlines() if line[7:].startswith(name))


def test_a_sound_installation() -> None:
    result = run()
    assert result.returncode == 0, result.stdout
    assert "a run can work" in result.stdout and "FAIL" not in result.stdout
    assert "uae_g4u" in line(result.stdout, "trainers") and "pixel" in line(result.stdout, "rewards")
    assert "0.9" in line(result.stdout, "verl ")


def test_a_broken_installation_is_named(tmp_path: Path) -> None:
    """Entry points switched off, and a package that verl's trainers need does not import."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['transfer_queue'] = None\n")
    result = run(VERL_USE_EXTERNAL_PLUGINS="none", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "VERL_USE_EXTERNAL_PLUGINS=none leaves verl_uae out" in line(result.stdout, "entry point")
    assert line(result.stdout, "trainers").startswith("[FAIL]") and "transfer_queue" in line(result.stdout, "trainers")
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith("a run could not work: entry point") and "trainers" in last


def test_a_missing_or_unfit_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"no-such-package": ">=1", "torch": ">=99", "packaging": ">=20"})
    missing, unfit, fine, *optional = doctor._distributions()
    assert not missing.ok and missing.fatal and missing.detail == "not installed (wants >=1)"
    assert not unfit.ok and unfit.detail.endswith("(wants >=99)") and fine.ok
    assert not any(finding.fatal for finding in optional)


@pytest.mark.parametrize(
    ("policy", "ok"), [("auto", True), ("verl_uae", True), ("x, verl_uae", True), ("none", False), ("x", False)]
)
def test_the_policy_of_verl(monkeypatch: pytest.MonkeyPatch, policy: str, ok: bool) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", policy)
    assert doctor._entry_point().ok is ok


def test_no_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [])
    assert "install the package" in doctor._entry_point().detail


def test_whatever_a_check_raises_is_a_finding() -> None:
    def check() -> str:
        raise ArithmeticError("mine")

    assert doctor._guarded("x", check) == Finding("x", False, "ArithmeticError: mine")


def test_only_fatal_findings_stop_a_run() -> None:
    report = Report([Finding("a", True, ""), Finding("b", False, "", fatal=False)])
    assert report.ok and "[--  ] b" in render(report)
    report.findings.append(Finding("c", False, "gone"))
    assert not report.ok and render(report).endswith("a run could not work: c")


def test_required_versions_are_those_of_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name in ("verl", "transformers", "diffusers", "TransferQueue", "hydra-core", "torchmetrics"):
        assert SpecifierSet(doctor.REQUIRED[name]) == declared[name], name
