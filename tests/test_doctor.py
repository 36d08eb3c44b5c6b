# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests import forks
from tests.source import imports, relative
from tests.source import modules as source_modules
from verl_uae import doctor
from verl_uae.doctor import NEEDS, Finding, Report, render


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [forks.python(), "-m", "verl_uae.cli", "doctor"]
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
    assert "UserWarning" not in result.stderr, "an engine that nobody asked for is no finding"


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
    monkeypatch.setattr(
        doctor, "REQUIRED", {"no-such-package": ">=1", "torch": ">=99", "packaging": ">=20", "numpy": ""}
    )
    missing, unfit, *fine = doctor._distributions()
    assert not missing.ok and missing.fatal and missing.detail == "not installed (wants >=1)"
    assert missing.remedy == 'pip install "no-such-package>=1"'
    assert not unfit.ok and unfit.detail.endswith("(wants >=99)") and all(finding.ok for finding in fine)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in front of everything installed; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    for need in {need.module.partition(".")[0] for needs in NEEDS.values() for need in needs}:
        for name in [name for name in sys.modules if name.partition(".")[0] == need]:
            monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def found(hardware: str) -> dict[str, Finding]:
    return {name: doctor._guarded(name, check, remedy) for name, check, remedy in doctor._checks(hardware)}


@pytest.mark.parametrize("hardware", NEEDS)
def test_what_a_kind_of_hardware_needs_is_fatal_and_has_a_command(modules: Path, hardware: str) -> None:
    for need in NEEDS[hardware]:
        # Nothing of that name can be found, whatever is installed here.
        (modules / f"{need.module.partition('.')[0]}.py").write_text("raise ModuleNotFoundError(name=__name__)\n")
    for name, check, remedy in doctor._checks(hardware):
        if name in {need.module for need in NEEDS[hardware]}:
            finding = doctor._guarded(name, check, remedy)
            assert finding.fatal and not finding.ok and "not installed, and needed for" in finding.detail
            assert "pip install" in finding.remedy and f"; to mend: {finding.remedy}" in render(Report([finding]))


def test_a_module_must_import_and_not_only_be_there(modules: Path) -> None:
    """flash-attn built for another torch is installed, and a run fails."""
    (modules / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    (modules / "vllm.py").write_text("")
    (modules / "transformer_engine").mkdir()
    (modules / "transformer_engine" / "__init__.py").write_text("")
    (modules / "transformer_engine" / "pytorch.py").write_text("import a_part_that_is_not_there\n")
    seen = found("megatron")
    assert seen["vllm"].ok
    assert not seen["flash_attn"].ok and "ImportError: undefined symbol: _ZN3c10" in seen["flash_attn"].detail
    assert "pip install flash-attn" in seen["flash_attn"].remedy
    assert "No module named 'a_part_that_is_not_there'" in seen["transformer_engine.pytorch"].detail


def test_a_torch_for_cpus_and_no_accelerator_are_fatal_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has an accelerator")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seen = found("gpu")
    assert not seen["accelerator"].ok and "RAY_ADDRESS" in seen["accelerator"].detail
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built for CPUs" in found("gpu")["torch for GPUs"].detail
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    assert found("gpu")["torch for GPUs"].ok
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert found("gpu")["accelerator"].ok


def test_vllm_for_gpus_is_none_for_cpus(modules: Path) -> None:
    (modules / "vllm").mkdir()
    (modules / "vllm" / "__init__.py").write_text("")
    text = "class current_platform:\n    device_type = 'cuda'\n    is_cpu = staticmethod(lambda: {})\n"
    (modules / "vllm" / "platforms.py").write_text(text.format(False))
    assert "is for cuda, not for CPUs" in found("cpu_vllm")["vllm for CPUs"].detail


def test_the_default_is_what_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_checks", lambda hardware: [])
    monkeypatch.setattr(doctor, "_accelerators", lambda: 0)
    line = doctor.examine().findings[1].detail
    assert line == "cpu; chosen since torch sees no accelerator; else --hardware gpu|cpu_vllm|megatron"
    monkeypatch.setattr(doctor, "_accelerators", lambda: 2)
    assert doctor.examine().findings[1].detail.startswith("gpu; chosen since torch sees 2 accelerators;")
    assert doctor.examine("cpu").findings[1].detail == "cpu; else --hardware gpu|cpu_vllm|megatron"


@pytest.mark.parametrize("hardware", ["gpu", "cpu", "megatron"])
def test_the_config_of_every_hardware_composes(hardware: str) -> None:
    assert doctor._check_config(hardware).startswith("uae_g4u_megatron" if hardware == "megatron" else "uae_g4u,")


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("Ray's folder", "RAY_TMPDIR", "/tmp/" + "x" * 80),
        ("home", "HOME", "/proc/none"),
        ("cache of data files", "HF_DATASETS_CACHE", "/proc/none"),
    ],
)
def test_surroundings_that_no_run_survives(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    finding = found("cpu")[name]
    assert finding.fatal and not finding.ok and variable in finding.detail


def test_extras_are_listed_with_their_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: None)
    lines = render(Report(list(doctor._extras()))).splitlines()
    assert next(line for line in lines if "gradio" in line).endswith(
        'not installed (optional: the page examples/demo.py); to mend: pip install ".[demo]" in a checkout'
    )
    assert lines[-1] == "a run can work"


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


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    loaded = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(loaded["project"])


def test_required_versions_are_those_of_pyproject(project: dict[str, Any]) -> None:
    declared = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    brought = {"torch", "ray", "tensordict"}
    assert set(declared) == set(doctor.REQUIRED) - brought
    for name, specifier in declared.items():
        assert SpecifierSet(doctor.REQUIRED[name]) == specifier, name


def test_extras_are_those_of_pyproject(project: dict[str, Any]) -> None:
    declared = {
        extra: {Requirement(line).name for line in lines}
        for extra, lines in project["optional-dependencies"].items()
        if extra not in ("vllm", "gpu", "dev")
    }
    assert {extra: set(names) for extra, (names, _) in doctor.EXTRAS.items()} == declared


#: Distributions whose modules have other names.
MODULES = {"pillow": "PIL", "pyzmq": "zmq", "hydra-core": "hydra", "transferqueue": "transfer_queue"}
#: Imported in files that only the program in question, or the hardware that needs it, loads.
ON_DEMAND = {"vllm", "lmms_eval", "swanlab", "trackio", "mlflow"}


def module_of(distribution: str) -> str:
    name = distribution.lower()
    return MODULES.get(name, name.replace("-", "_"))


def test_the_base_install_has_every_module_that_is_imported(project: dict[str, Any]) -> None:
    """What `pip install .` brings: our dependencies, and those of theirs that we import ourselves."""
    base = {module_of(Requirement(line).name) for line in project["dependencies"]}
    for parent in ("verl", "torch", "transformers", "hydra-core", "fastapi"):
        requirements = map(Requirement, importlib.metadata.requires(parent) or [])
        base |= {module_of(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
    # torch comes with accelerate and everything else, yaml with omegaconf.
    base |= {"torch", "yaml", "verl_uae", *sys.stdlib_module_names}
    extras = {module_of(name) for names, _ in doctor.EXTRAS.values() for name in names} | {"braceexpand"}
    for path in source_modules():
        eager = {name.partition(".")[0] for name in imports(path, lazy=False)}
        lazy = {name.partition(".")[0] for name in imports(path)}
        assert not eager - base - ON_DEMAND, relative(path)
        assert not lazy - base - extras - ON_DEMAND, relative(path)
