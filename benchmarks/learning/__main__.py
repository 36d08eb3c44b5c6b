# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.learning {flux3,g4u,long,rewards,stages,u4g,unified} --seeds 0 1 2 --out OUT``.

Writes ``NAME.json`` (every figure, with seeds) and pictures into OUT and says whether the bars are met; the exit code
is 1 if one is missed. With ``--results FILE`` nothing is trained: table, bars and plot are those of a written file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.learning.experiment import Experiment, lines
from benchmarks.learning.flux3 import Flux3
from benchmarks.learning.g4u import G4U
from benchmarks.learning.long import Long
from benchmarks.learning.rewards import Rewards
from benchmarks.learning.stages import Stages
from benchmarks.learning.u4g import U4G
from benchmarks.learning.unified import Unified
from verl_uae.cli import answered
from verl_uae.paths import argument_path

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one for one in (Flux3(), G4U(), Long(), Rewards(), Stages(), U4G(), Unified())
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run an experiment over all seeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="tiny models and runs of each")
    parser.add_argument("--steps", type=int, help=f"training steps of a run (default 60; long: {Long.steps})")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time; one needs about a core (default 1)")
    parser.add_argument("--out", type=argument_path, help="default outputs/learn-NAME")
    parser.add_argument("--results", type=argument_path, metavar="FILE", help="a written NAME.json to show instead")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    experiment = EXPERIMENTS[args.experiment]
    out = (args.out or Path("outputs") / f"learn-{experiment.name}").absolute()
    out.mkdir(parents=True, exist_ok=True)
    if args.results:
        bars = experiment.show(out, args.results, say)
    else:
        steps = args.steps or experiment.steps
        bars = experiment.run(out, seeds=args.seeds, steps=steps, jobs=args.jobs, say=say)
    for line in lines(bars):
        say(line)
    return 0 if all(bar.met for bar in bars) else 1


def say(text: str) -> None:
    """Print at once: the runs take long."""
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(answered(main))
