# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The command ``verl-uae``. Imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from verl_uae import __version__
from verl_uae.errors import UAEError


def build_parser() -> argparse.ArgumentParser:
    """The argument parser with all sub-commands."""
    parser = argparse.ArgumentParser(prog="verl-uae", description="Unified-GRPO for unified multimodal models on verl.")
    parser.add_argument("--version", action="version", version=f"verl-uae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="say what is installed, what registered, what failed and why")
    doctor.set_defaults(run=_doctor)

    quickstart = commands.add_parser(
        "quickstart", help="pre-train the tiny models, run G4U on the scenes, report; takes Hydra overrides too"
    )
    quickstart.add_argument("out", help="folder for models, data, logs and the report")
    quickstart.add_argument("--seed", type=int, default=0, help="seed of models, data and run (default 0)")
    quickstart.add_argument("--steps", type=int, default=60, help="G4U steps (default 60)")
    quickstart.set_defaults(run=_quickstart)

    estimate = commands.add_parser("estimate", help="memory per GPU and cost of a G4U run, from a small calculator")
    estimate.add_argument("--gpu", default="H100-80GB", help="GPU type, see --list")
    estimate.add_argument("--gpus", type=int, default=8, help="number of GPUs (default 8)")
    estimate.add_argument("--steps", type=int, default=1000, help="training steps (default 1000)")
    estimate.add_argument("--decoder", default="sd35_large", choices=["sd35_large", "sd35_medium"])
    estimate.add_argument("--list", action="store_true", help="list GPU types")
    estimate.set_defaults(run=_estimate)

    from verl_uae.bench.cli import add_parser as add_bench
    from verl_uae.data.cli import add_parser as add_data
    from verl_uae.demo.cli import add_parser as add_demo
    from verl_uae.formats.cli import add_parser as add_formats
    from verl_uae.pipeline.cli import add_parser as add_sample

    for add in (add_data, add_formats, add_sample, add_demo, add_bench):
        add(commands)
    return parser


def _doctor(args: argparse.Namespace) -> int:
    from verl_uae.doctor import examine, render

    report = examine()
    print(render(report))
    return 0 if report.ok else 1


def _quickstart(args: argparse.Namespace) -> int:
    from verl_uae.scenes.quickstart import quickstart

    return quickstart(args.out, seed=args.seed, steps=args.steps, overrides=args.overrides, say=print)


def _estimate(args: argparse.Namespace) -> int:
    from verl_uae.estimate import GPUS, estimate, render

    if args.list:
        print("\n".join(sorted(GPUS)))
        return 0
    print(render(estimate(args.gpu, gpus=args.gpus, steps=args.steps, decoder=args.decoder)))
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; ``quickstart`` takes Hydra overrides (``key=value``) anywhere among its options."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest and (args.command != "quickstart" or overrides != rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = overrides
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; errors raised on purpose are one line and exit code 2."""
    args = parse(argv)
    try:
        return int(args.run(args) or 0)
    except UAEError as error:
        print(f"verl-uae: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
