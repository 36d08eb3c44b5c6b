# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What one batch of stage U4G costs against group size, denoising steps and trained window.

    python -m benchmarks.u4g_cost --json cost.json

The package's side of benchmarks/u4g_throughput.py alone: sampling and update, the tiny model of the built-in scenes,
one rank. The settings of all three sweeps take turns, so what slows the machine for a while meets all of them, and the
fastest repetition of each is kept. Sampling should be a line in the denoising steps, the update a line in the window,
and both a line in the group.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import add_options, fit_line, interleave, provenance, write_json
from benchmarks.ours import Ours, build_engine, verl_available
from benchmarks.sizes import SIZES, build_conditioner, build_policy
from benchmarks.work import Work, make_plan
from verl_uae.bench.results import markdown_table, number


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a sweep."""

    group: int = 8
    steps: int = 10
    window: int = 2


#: What varies, and over what; the rest stays at the defaults of Setting.
SWEEPS: dict[str, tuple[int, ...]] = {"group": (4, 8, 16, 32), "steps": (5, 10, 20, 40), "window": (1, 2, 4, 8)}
PARTS = ("sampling", "update")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    options = parse(arguments)
    torch.set_num_threads(1)
    settings = list(dict.fromkeys(setting for name in SWEEPS for setting in sweep(name)))
    sides = build(options, settings)
    runs = interleave([side.run for side in sides], options.repetitions, options.warmup)
    fastest = {
        setting: {part: min(run[part] for run in column) for part in PARTS}
        for setting, column in zip(settings, runs, strict=True)
    }
    report = {
        "benchmark": "u4g_cost",
        "provenance": provenance("cpu", options.seed),
        "engine": sides[0].engine.name,
        "clock": options.clock,
        "repetitions": options.repetitions,
        "prompts": options.prompts,
        "micro": options.micro,
        "defaults": dataclasses.asdict(Setting()),
        "sweeps": {name: describe(name, fastest) for name in SWEEPS},
    }
    for name, found in report["sweeps"].items():
        print(_table(name, found) + "\n")
    write_json(options.json, report)
    return report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="U4G: cost against group size, denoising steps and trained window")
    parser.add_argument("--engine", choices=("verl", "plain"), default="verl" if verl_available() else "plain")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--micro", type=int, default=8, help="samples per forward pass")
    add_options(parser, repetitions=5)
    return parser.parse_args(arguments)


def sweep(name: str) -> list[Setting]:
    """Settings of a sweep in their order."""
    return [dataclasses.replace(Setting(), **{name: value}) for value in SWEEPS[name]]


def build(options: argparse.Namespace, settings: Sequence[Setting]) -> list[Ours]:
    """One side per setting, all with the same engine."""
    size = SIZES["tiny"]
    module, conditioner = build_policy(size, options.seed), build_conditioner(size, options.seed)
    engine = build_engine(options.engine, module, size, "cpu", torch.float32)
    processor = options.clock == "processor"
    return [
        Ours(
            engine,
            conditioner,
            Work(
                size=size,
                plan=make_plan(setting.steps, setting.window),
                prompts=options.prompts,
                group=setting.group,
                micro=options.micro,
                updates=1,
                seed=options.seed,
                device="cpu",
                processor_time=processor,
            ),
        )
        for setting in settings
    ]


def describe(name: str, fastest: dict[Setting, dict[str, float]]) -> dict[str, Any]:
    """Points and fitted lines of a sweep."""
    points = sweep(name)
    x = [float(getattr(point, name)) for point in points]
    columns = {part: [fastest[point][part] for point in points] for part in PARTS}
    columns["total"] = [sum(values) for values in zip(*columns.values(), strict=True)]
    lines = {part: dataclasses.asdict(fit_line(x, y)) for part, y in columns.items()}
    return {"x": x, "seconds": columns, "lines": lines}


def _table(name: str, found: dict[str, Any]) -> str:
    header = (name, *(f"{value:g}" for value in found["x"]), "seconds per unit", "seconds at 0", "R²")
    forms = {"slope": ".4f", "intercept": ".3f", "r2": ".4f"}
    rows = [
        [
            f"{part}, s",
            *(number(value, ".3f") for value in found["seconds"][part]),
            *(number(line[key], form) for key, form in forms.items()),
        ]
        for part, line in found["lines"].items()
    ]
    return "\n".join(markdown_table(header, rows))


if __name__ == "__main__":
    main()
