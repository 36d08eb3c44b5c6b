# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m verl_uae.scenes.learn {g4u,long,rewards,stages,u4g,unified} --seeds 0 1 2 --out OUT``.

Writes ``STAGE.json`` (every figure, with seeds) and pictures into OUT and says whether the bars are met; the exit code
is 1 if one is missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from verl_uae.paths import argument_path
from verl_uae.scenes.learn import g4u, long, rewards, stages, u4g, unified
from verl_uae.scenes.learn.bars import Bar, lines

STAGES = {
    "g4u": g4u.learn,
    "long": long.learn,
    "rewards": rewards.learn,
    "stages": stages.learn,
    "u4g": u4g.learn,
    "unified": unified.learn,
}
#: Training steps of a run where they are not given.
STEPS = {**dict.fromkeys(STAGES, 60), "long": long.STEPS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage over all seeds."""
    parser = argparse.ArgumentParser(prog="python -m verl_uae.scenes.learn", description=__doc__)
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one cold start and run each")
    parser.add_argument("--steps", type=int, help=f"training steps of a run (default 60; long: {long.STEPS})")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time; one needs about a core (default 1)")
    parser.add_argument("--out", type=argument_path, help="default outputs/learn-STAGE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    out = (args.out or Path("outputs") / f"learn-{args.stage}").absolute()
    out.mkdir(parents=True, exist_ok=True)
    bars: list[Bar] = STAGES[args.stage](
        out, seeds=args.seeds, steps=args.steps or STEPS[args.stage], jobs=args.jobs, say=say
    )
    for line in lines(bars):
        say(line)
    return 0 if all(bar.met for bar in bars) else 1


def say(text: str) -> None:
    """Print at once: the runs take long."""
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
