# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.learning EXPERIMENT``: one of `EXPERIMENTS`, or ``all``.

Writes ``NAME.json`` (every figure, with seeds, commit, versions and command) and pictures into OUT and says whether the
bars are met; the exit code is 1 if one is missed. What OUT holds of an earlier run is not run again. With ``--results
FILE`` nothing is trained: table, bars and plot are those of a written file. ``all`` lists what every experiment takes,
then runs one after the other; with ``--list`` nothing is run.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.learning.controls import Controls
from benchmarks.learning.emoji import SecondWorld
from benchmarks.learning.experiment import Experiment, Report, lines
from benchmarks.learning.flux3 import Flux3
from benchmarks.learning.g4u import G4U
from benchmarks.learning.grounding import Grounding
from benchmarks.learning.long import Long
from benchmarks.learning.mutual import Mutual
from benchmarks.learning.objectives import Objectives, Rates
from benchmarks.learning.rewards import Rewards
from benchmarks.learning.runs import FINISHED
from benchmarks.learning.stages import Stages
from benchmarks.learning.statistics import AXES
from benchmarks.learning.u4g import U4G
from benchmarks.learning.unified import Unified
from verl_uae.bench.results import NOTHING, markdown_table, number
from verl_uae.cli import answered
from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one
    for one in (
        Controls(),
        SecondWorld(),
        Flux3(),
        G4U(),
        Grounding(),
        Long(),
        Mutual(),
        Objectives(),
        Rates(),
        Rewards(),
        Stages(),
        U4G(),
        Unified(),
    )
}
ALL = "all"
#: Result files of the documentation.
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run an experiment over all seeds, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, ALL])
    parser.add_argument("--seeds", type=int, nargs="+", help="tiny models and runs of each (default: the experiment's)")
    parser.add_argument("--steps", type=int, help="training steps of a run (default: the experiment's)")
    parser.add_argument(
        "--arms", nargs="+", help="of controls, grounding, mutual, objectives and rates: which are run (default all)"
    )
    parser.add_argument("--axis", choices=AXES, default="step", help="of the plot: what runs have used up")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time; one needs about a core (default 1)")
    parser.add_argument("--out", type=argument_path, help="default outputs/learn-NAME")
    parser.add_argument("--results", type=argument_path, metavar="FILE", help="a written NAME.json to show instead")
    parser.add_argument("--list", action="store_true", help="say what it takes, and run nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    everything = args.experiment == ALL
    chosen = list(EXPERIMENTS.values()) if everything else [EXPERIMENTS[args.experiment].chosen(args.arms, args.axis)]
    given = [option for option in ("seeds", "steps", "arms", "out", "results") if getattr(args, option)]
    if everything and given:
        raise ConfigError(f"--{given[0]}", "is of one experiment; name it instead of all")
    if everything or args.list:
        say("\n".join(plan(chosen, RESULTS)))
    return 0 if args.list else max(run(experiment, args) for experiment in chosen)


def run(experiment: Experiment, args: argparse.Namespace) -> int:
    """Run or show an experiment; 1 if a bar is missed."""
    out = (args.out or folder(experiment)).absolute()
    out.mkdir(parents=True, exist_ok=True)
    if args.results:
        bars = experiment.show(out, args.results, say)
    else:
        seeds, steps = args.seeds or experiment.seeds, args.steps or experiment.steps
        words = ["python", "-m", "benchmarks.learning", experiment.name, "--seeds", *map(str, seeds)]
        words += ["--steps", str(steps), "--jobs", str(args.jobs)]
        words += ["--arms", *experiment.arms] if args.arms else []
        bars = experiment.run(out, seeds=seeds, steps=steps, jobs=args.jobs, say=say, command=shlex.join(words))
    for line in lines(bars):
        say(line)
    return 0 if all(bar.met for bar in bars) else 1


def folder(experiment: Experiment) -> Path:
    """Where an experiment runs by default."""
    return Path("outputs") / f"learn-{experiment.folder or experiment.name}"


def plan(experiments: Iterable[Experiment], results: Path) -> list[str]:
    """Lines of Markdown: what experiments take, and how many of their commands have ended in their folders.

    Args:
        experiments: those asked for.
        results: folder of result files, whose seconds are scaled to the seeds and steps of today.
    """
    rows = []
    for one in experiments:
        file = results / f"{one.name}.json"
        report: Report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        measured = list(seconds(report))
        minutes, source = one.assumed_minutes, NOTHING if one.assumed_minutes is None else "assumed"
        if measured:
            count = len({seed for seed, _ in measured})
            scale = len(one.seeds) / count * one.steps / report.get("steps", one.steps)
            minutes, source = scale * sum(found for _, found in measured) / 60, f"measured on {count} seeds"
        ended = len(list(folder(one).glob(f"**/{FINISHED}")))
        seeds = " ".join(map(str, one.seeds))
        rows.append([one.name, seeds, str(one.steps), number(minutes, ".0f"), source, str(ended)])
    head = ["experiment", "seeds", "steps", "minutes of commands", "", "ended in its folder"]
    return markdown_table(head, rows, words=(0, 1, 4))


def seconds(report: Report) -> Iterator[tuple[int, float]]:
    """Seed and seconds of the commands of a report, with those of its joint training where it says them."""
    for row in (*report.get("runs", ()), *report.get("seeds", ())):
        found = row.get("seconds") if isinstance(row, dict) else None
        if isinstance(found, dict):
            yield row["seed"], found.get("joint training", 0.0) + found["training command"]
        elif found is not None:
            yield row["seed"], found


def say(text: str) -> None:
    """Print at once: the runs take long."""
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(answered(main))
