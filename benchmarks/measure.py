# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Interleaved repetitions, their statistics, fitted lines, and where a figure comes from."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from verl_uae.versions import version

#: Packages whose versions go with every figure.
PACKAGES = ("verl", "torch", "diffusers", "transformers", "peft", "verl-uae")

#: One repetition, given its number; seconds by part.
Run = Callable[[int], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Part:
    """Seconds of one part of two sides, and their ratio; None where a side has no such part."""

    ours_min: float | None
    ours_median: float | None
    baseline_min: float | None
    baseline_median: float | None
    ratio: float | None
    """Median over the pairs of baseline over ours: above 1 where ours is faster."""
    ratio_of_minima: float | None
    """Baseline over ours of the fastest repetitions, which other load on the machine touches least."""
    ratio_low: float | None
    """Smallest of the pairs."""
    ratio_high: float | None
    """Largest of the pairs."""


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope * x by least squares."""

    slope: float
    intercept: float
    r2: float
    """Share of the variance explained; 1 for points on a line."""


def interleave(runs: Sequence[Run], repetitions: int, warmup: int = 1) -> list[list[dict[str, float]]]:
    """Run all in turn, A B A B, so that what slows the machine for a while meets all alike.

    Args:
        runs: called with the number of the repetition, warm-up included.
        repetitions: counted ones.
        warmup: first repetitions that are not counted.

    Returns:
        For every run its seconds by repetition.
    """
    found: list[list[dict[str, float]]] = [[] for _ in runs]
    for repetition in range(warmup + repetitions):
        for column, run in zip(found, runs, strict=True):
            seconds = run(repetition)
            if repetition >= warmup:
                column.append(seconds)
    return found


def compare(ours: Sequence[float], baseline: Sequence[float]) -> Part:
    """Statistics of one part, repetition by repetition; a side without the part is empty."""
    ratios = [b / a for a, b in zip(ours, baseline, strict=True)] if ours and baseline else []
    return Part(
        ours_min=min(ours, default=None),
        ours_median=_median(ours),
        baseline_min=min(baseline, default=None),
        baseline_median=_median(baseline),
        ratio=_median(ratios),
        ratio_of_minima=min(baseline) / min(ours) if ratios else None,
        ratio_low=min(ratios, default=None),
        ratio_high=max(ratios, default=None),
    )


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares.

    Raises:
        ValueError: fewer than two different x.
    """
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    if len(x) != len(y) or spread == 0.0:
        raise ValueError(f"a line needs pairs with two different x, got {x} and {y}")
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    return Line(slope, intercept, 1.0 - left / total if total > 0.0 else 1.0)


def add_options(parser: argparse.ArgumentParser, *, repetitions: int) -> None:
    """Options of every measurement in repetitions.

    Args:
        parser: gets them.
        repetitions: default.
    """
    parser.add_argument("--repetitions", type=int, default=repetitions, help=f"counted ones (default {repetitions})")
    parser.add_argument("--warmup", type=int, default=1, help="repetitions that are not counted (default 1)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor: on a shared CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")


def provenance(device: str, seed: int | None = None) -> dict[str, Any]:
    """Versions, commit, machine and seed, where there is one."""
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def matmul_rate(device: str, dtype: torch.dtype, *, processor: bool = False) -> float:
    """FLOP per second of a big square matrix product of random numbers: the best of several."""
    from benchmarks.work import Clock

    side, times = (8192, 20) if device == "cuda" else (1024, 5)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        clock = Clock(device, processor=processor)
        for _ in range(times):
            a @ b
        clock.lap("matmul")
        best = min(best, clock.seconds["matmul"] / times)
    return 2.0 * side**3 / best


def write_json(path: str | os.PathLike[str] | None, report: dict[str, Any]) -> None:
    """Write a report if a file is named; its folder is made if missing."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _commit() -> str | None:
    """Short hash, with a plus sign where the working tree differs."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
