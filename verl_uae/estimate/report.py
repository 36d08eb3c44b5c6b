# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""An estimate as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from verl_uae.estimate.estimator import Answer, Estimate
from verl_uae.estimate.phase import Phase
from verl_uae.estimate.rates import GIB
from verl_uae.stages.common.config import step_kinds
from verl_uae.stages.u4g.config import drawn_pictures

_COLUMNS = ("phase", "TFLOP", "with recomputation", "peak GiB", "NVLink GB", "network GB", "PCIe GB", "seconds")


def pictures(found: Estimate) -> float:
    """Drawn, or learnt from, in a step; in the unified stage's turns in the mean one."""
    config = found.command.config
    counts = {kind: step_pictures(config, kind) for kind in step_kinds(config)}
    if len(counts) == 1:
        return float(*counts.values())
    steps = {kind: config.uae.unified[f"{kind}_steps"] for kind in counts}
    return float(sum(steps[kind] * count for kind, count in counts.items()) / sum(steps.values()))


def step_pictures(config: DictConfig, kind: str) -> int:
    """Drawn, or learnt from, in a step of a kind, see :func:`~verl_uae.stages.common.config.step_kinds`."""
    images = int(config.data.train_batch_size)
    if kind == "g4u":
        return images * int(config.actor_rollout_ref.rollout.n) * int(config.uae.decoder.seeds_per_caption)
    return sum(drawn_pictures(config)) if kind in ("u4g", "joint") else images


def render(
    found: Estimate,
    remedies: Sequence[tuple[dict[str, Any], Estimate]] = (),
    host_remedies: Sequence[tuple[dict[str, Any], Estimate]] = (),
    *,
    steps: int = 1000,
) -> str:
    """The estimate as text.

    Args:
        found: the estimate.
        host_remedies: of :meth:`~verl_uae.estimate.Estimator.host_remedies`.
        remedies: of :meth:`~verl_uae.estimate.Estimator.remedies` where it does not fit, of
            :meth:`~verl_uae.estimate.Estimator.faster` where it does.
        steps: of the run, for its time and price.
    """
    config = found.command.config
    nodes = "" if config.trainer.nnodes == 1 else f" on {config.trainer.nnodes} nodes"
    lines = [
        f"{found.command.name}, {found.gpus} x {found.gpu}{nodes}: calculated from executed operations, not measured",
        f"  decoder {_decoder(found)}, captioner {config.actor_rollout_ref.model.path}, condition from "
        f"{config.uae.conditioner.path}",
    ]
    if found.rates.measured:
        lines.append(f"  rates measured on {found.rates.measured}")
    if found.decided:
        lines.append(f"  left to the estimate: {_words(found.decided)}")
    rows = [_COLUMNS, *(_row(found, phase) for phase in found.phases)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    lines += _memory(found)
    if found.fits:
        rate = pictures(found) / found.step_seconds / found.gpus
        lines.append(
            f"  step {found.step_seconds:.1f} s, {rate:.2f} pictures a second and GPU, {100 * found.mfu:.0f} % of the "
            f"peak in bf16; {steps:,} steps {found.hours(steps):.1f} h, about {found.usd(steps):,.0f} USD"
        )
    for changes, other in remedies:
        gain = "faster" if found.fits else "fits"
        host = "" if other.host_fits or not found.host_fits else f", and {other.host_gib:.0f} GiB of the host: too many"
        figures = f"{other.peak_gib:.1f} GiB, {other.step_seconds:.1f} s per step{host}"
        lines.append(f"  {gain} with {_words(changes)}: {figures}")
    for changes, other in host_remedies:
        lines.append(
            f"  fits the host with {_words(changes)}: {other.host_gib:.0f} GiB of it, {other.peak_gib:.1f} GiB of the "
            f"GPU, {other.step_seconds:.1f} s per step"
        )
    if not found.host_fits and not host_remedies:
        lines.append("  nothing that was tried makes it fit the host: take a node with more memory")
    if not found.fits and not remedies:
        lines.append("  nothing that was tried makes it fit: take a GPU with more memory, or smaller models")
    if found.unknown:
        lines.append(f"  not counted: the networks of {', '.join(found.unknown)}")
    return "\n".join(lines)


def memory_words(found: Estimate, remedies: Sequence[tuple[dict[str, Any], Estimate]] = ()) -> str:
    """Whether the estimate fits GPU and host, and what makes it fit, in a line."""
    verdict = "fits" if found.fits and found.host_fits else "does NOT fit"
    hint = f", it does with {_words(remedies[0][0])}" if remedies else ""
    return (
        f"{verdict}{hint}: {found.peak_gib:.1f} of {found.usable_gib:.1f} GiB of {found.gpu}, "
        f"in phase {found.fullest.name!r}, and {found.host_gib:.0f} of {found.usable_host_gib:.0f} GiB of a node; "
        "calculated, see verl-uae estimate"
    )


def _decoder(found: Estimate) -> str:
    asked = found.command
    if asked.folders:
        return str(asked.config.uae.decoder.path)
    instead = "" if asked.named is None else f" in place of {asked.named}, which is not on this machine"
    return f"{asked.decoder} as published{instead}"


def _row(found: Estimate, phase: Phase) -> tuple[str, ...]:
    memory = sum(found.memory_gib(phase).values())
    travelled = (phase.gathered - phase.across, phase.across, phase.pinned + phase.pageable)
    return (
        phase.name,
        f"{phase.useful / 1e12:,.1f}",
        f"{phase.executed.total / 1e12:,.1f}",
        f"{memory:.1f}" if memory else "",
        *(f"{size / 1e9:,.1f}" if size else "" for size in travelled),
        f"{found.seconds(phase):.2f}" + (" once" if phase.share == 0 else " beside" if phase.together else ""),
    )


def _memory(found: Estimate) -> list[str]:
    worst = found.fullest
    owners = sorted(found.memory_gib(worst).items(), key=lambda item: -item[1])
    held = ", ".join(f"{owner} {size:.1f}" for owner, size in owners if size >= 0.05)
    room = found.usable_gib
    verdict = "fits" if found.fits else "does NOT fit"
    lines = [
        f"  {verdict}: {found.peak_gib:.1f} of {room:.1f} GiB that can be used, in phase {worst.name!r}",
        f"    {held}",
    ]
    share = max(phase.server_share for phase in found.phases)
    if share and share < found.server_share:
        lines.append(
            f"  the caption server needs actor_rollout_ref.rollout.gpu_memory_utilization={found.server_share:g}, "
            f"it has {share:g}"
        )
    return [*lines, *_host(found)]


def _host(found: Estimate) -> list[str]:
    room, verdict = found.usable_host_gib, "fits" if found.host_fits else "does NOT fit"
    owners = sorted(found.host.items(), key=lambda item: -item[1])
    held = ", ".join(f"{owner} {size / GIB:.1f}" for owner, size in owners if size >= 0.05 * GIB)
    return [
        f"  {verdict} the host: {found.host_gib:.1f} of {room:.1f} GiB of a node that can be used",
        f"    {held}",
    ]


def as_json(answer: Answer) -> dict[str, Any]:
    """The figures of an estimate, by the names of the text's columns; memory in GiB by owner."""
    found = answer.found
    phases = [
        {
            "phase": phase.name,
            "useful_flops": phase.useful,
            "executed_flops": phase.executed.total,
            "memory_gib": found.memory_gib(phase),
            "links_gb": (phase.gathered - phase.across) / 1e9,
            "network_gb": phase.across / 1e9,
            "pcie_gb": (phase.pinned + phase.pageable) / 1e9,
            "seconds": found.seconds(phase),
            "share_of_steps": phase.share,
            "together": phase.together,
        }
        for phase in found.phases
    ]

    def remedies(several: Sequence[tuple[dict[str, Any], Estimate]]) -> list[dict[str, Any]]:
        return [
            {"set": changes, "peak_gib": other.peak_gib, "host_gib": other.host_gib, "step_s": other.step_seconds}
            for changes, other in several
        ]

    return {
        "config": found.command.name,
        "gpu": found.gpu,
        "gpus": found.gpus,
        "phases": phases,
        "fits": found.fits,
        "peak_gib": found.peak_gib,
        "usable_gib": found.usable_gib,
        "host": {
            "fits": found.host_fits,
            "gib": found.host_gib,
            "usable_gib": found.usable_host_gib,
            "by_owner_gib": {owner: size / GIB for owner, size in found.host.items()},
        },
        "step_s": found.step_seconds,
        "mfu": found.mfu,
        "pictures_per_s_and_gpu": pictures(found) / found.step_seconds / found.gpus,
        "not_counted": found.unknown,
        "remedies" if not found.fits else "faster": remedies(answer.remedies),
        "host_remedies": remedies(answer.host_remedies),
    }


def _words(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={written(value)}" for key, value in changes.items())


def written(value: Any) -> str:
    """A value as on a command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
