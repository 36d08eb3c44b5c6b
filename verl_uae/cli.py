# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The command ``verl-uae``. Imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from verl_uae.errors import UAEError
from verl_uae.estimate.rates import USUAL_GPU
from verl_uae.paths import argument_path
from verl_uae.text import one_line
from verl_uae.versions import __version__

#: Commands that take Hydra overrides.
_OVERRIDABLE = ("quickstart", "train", "check", "reward", "estimate", "plan")


def build_parser() -> argparse.ArgumentParser:
    """The argument parser with all sub-commands."""
    parser = argparse.ArgumentParser(prog="verl-uae", description="Unified-GRPO for unified multimodal models on verl.")
    parser.add_argument("--version", action="version", version=f"verl-uae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    from verl_uae.doctor import NEEDS

    doctor = commands.add_parser("doctor", help="say what is installed, what registered, what failed and what mends it")
    doctor.add_argument("--hardware", choices=list(NEEDS), help="what runs will use (default: gpu where there is one)")
    doctor.set_defaults(run=_doctor)

    quickstart = commands.add_parser(
        "quickstart", help="pre-train the tiny models, run G4U on the scenes, report; takes Hydra overrides too"
    )
    quickstart.add_argument("out", type=argument_path, help="folder for models, data, logs and the report")
    quickstart.add_argument("--seed", type=int, default=0, help="seed of models, data and run (default 0)")
    quickstart.add_argument("--steps", type=int, default=30, help="G4U steps (default 30)")
    quickstart.set_defaults(run=_quickstart)

    from verl_uae.commands.push import add_parser as add_push
    from verl_uae.commands.reward import add_parser as add_reward
    from verl_uae.commands.train import add_parser as add_train

    add_train(commands)
    add_reward(commands)
    _add_estimate(commands)
    _add_plan(commands)

    from verl_uae.bench.cli import add_parser as add_bench
    from verl_uae.chain.cli import add_parser as add_sample
    from verl_uae.checkpoints.cli import add_parser as add_formats
    from verl_uae.data.cli import add_parser as add_data

    for add in (add_data, add_formats, add_push, add_sample, add_bench):
        add(commands)
    _add_reward_server(commands)
    return parser


def _add_estimate(commands: Any) -> None:
    parser = commands.add_parser(
        "estimate", help="operations, memory, time and cost of a training command, executed without weights"
    )
    what = "config name or yaml file (default uae_g4u), then Hydra overrides, as of the training command"
    parser.add_argument("words", nargs="*", metavar="NAME KEY=VALUE", help=what)
    parser.add_argument("--gpu", default=USUAL_GPU, help="GPU type, see --list (default %(default)s)")
    parser.add_argument("--gpus", type=int, help="GPUs of a node (default: what the configuration says)")
    parser.add_argument("--nodes", type=int, help="nodes (default: what the configuration says)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps, for time and cost (default 1000)")
    parser.add_argument("--caption-tokens", type=int, default=320, help="tokens of a caption (default %(default)s)")
    parser.add_argument(
        "--calibrate", type=argument_path, metavar="FILE", help="measure the rates of this machine, write them, and end"
    )
    parser.add_argument(
        "--calibration", type=argument_path, metavar="FILE", help="rates of --calibrate in place of the data sheet's"
    )
    parser.add_argument("--host-memory", type=float, metavar="GIB", help="of a node (default: a usual one's)")
    parser.add_argument("--list", action="store_true", help="list GPU types")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=_estimate)


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan", help="step time, use of the GPUs and the best split of them for many GPUs, simulated by schedule"
    )
    what = "config name or yaml file (default uae_g4u), then Hydra overrides, as of the training command"
    parser.add_argument("words", nargs="*", metavar="NAME KEY=VALUE", help=what)
    parser.add_argument("--gpu", default=USUAL_GPU, help="GPU type, see verl-uae estimate --list (default %(default)s)")
    parser.add_argument(
        "--gpus",
        type=_count_or_word,
        nargs="+",
        default=[8, 64, 512, 4096],
        help="counts (default 8 64 512 4096); Hydra overrides may follow them",
    )
    parser.add_argument("--gpus-per-node", type=int, default=8, help="default %(default)s")
    parser.add_argument("--fixed-batch", action="store_true", help="samples of a step stay: strong scaling")
    parser.add_argument("--caption-tokens", type=int, default=320, help="mean of a caption (default %(default)s)")
    parser.add_argument(
        "--spread", type=float, help="standard deviation of the logarithm of captions' lengths (default 0.35)"
    )
    parser.add_argument(
        "--calibration", type=argument_path, metavar="FILE", help="rates of verl-uae estimate --calibrate"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(run=_plan)


def _count_or_word(text: str) -> int | str:
    """A count of GPUs, or an override that stands behind the counts."""
    return text if "=" in text else int(text)


def _add_reward_server(commands: Any) -> None:
    parser = commands.add_parser("reward-server", help="compute rewards for runs on other machines, over HTTP")
    parser.add_argument("--term", action="append", default=[], metavar="YAML", help="name or entry; may be repeated")
    parser.add_argument("--config", type=argument_path, metavar="FILE", help="YAML with terms: or uae.reward.terms:")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8900, help="default 8900; 0 takes a free one")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--token-file", type=argument_path, metavar="FILE", help="bearer token (else VERL_UAE_REWARD_TOKEN)"
    )
    parser.add_argument("--insecure", action="store_true", help="listen to other machines without a token")
    parser.add_argument("--tls-cert", type=argument_path, metavar="FILE", help="PEM certificate, for https")
    parser.add_argument("--tls-key", type=argument_path, metavar="FILE", help="its key")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="per term and request, seconds (default 60)")
    parser.add_argument("--source-cache-mib", type=int, default=256, help="features of sources, MiB (default 256)")
    parser.add_argument("--max-samples", type=int, default=64, help="per request (default 64)")
    parser.add_argument("--max-body-mib", type=int, default=128, help="per request, MiB (default 128)")
    parser.add_argument("--max-pixels", type=int, default=4096**2, help="per picture (default 4096 x 4096)")
    parser.add_argument("--max-request-pixels", type=int, help="per request (default 16 x 1024 x 1024)")
    parser.add_argument("--max-in-flight", type=int, default=4, help="requests at a time (default 4)")
    parser.set_defaults(run=_reward_server)


def _doctor(args: argparse.Namespace) -> int:
    from verl_uae.doctor import examine, render

    with warnings.catch_warnings():
        # verl warns at its import of each engine that is not installed, needed or not.
        warnings.simplefilter("ignore")
        report = examine(args.hardware)
    print(render(report))
    return 0 if report.ok else 1


def _quickstart(args: argparse.Namespace) -> int:
    from verl_uae.scenes.quickstart import quickstart

    return quickstart(args.out, seed=args.seed, steps=args.steps, overrides=args.overrides, say=print)


def _estimate(args: argparse.Namespace) -> int:
    from verl_uae.estimate.rates import GPUS

    if args.list:
        print("\n".join(sorted(GPUS)))
        return 0
    if args.calibrate is not None:
        from verl_uae.estimate.rates import calibrate

        measured = calibrate(args.calibrate)
        rates = ", ".join(f"{name} {value:.4g}" for name, value in measured["rates"].items())
        print(f"{measured['device']}: {rates}; written to {args.calibrate}")
        return 0
    _say_that_it_takes_long()
    with _without_warnings():
        from verl_uae.estimate.estimator import ask
        from verl_uae.estimate.report import as_json, render

        name, words = _named(args)
        answer = ask(
            name,
            words,
            gpu=args.gpu,
            gpus=args.gpus,
            nodes=args.nodes,
            steps=args.steps,
            caption_tokens=args.caption_tokens,
            calibration=args.calibration,
            host_gib=args.host_memory,
        )
    if args.json:
        print(json.dumps(as_json(answer), indent=1))
    else:
        print(render(answer.found, answer.remedies, answer.host_remedies, steps=args.steps))
    return 0


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """verl tells of engines and accelerators that this machine lacks, libraries of what a model without weights cannot
    do."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _say_that_it_takes_long() -> None:
    if sys.stderr.isatty():
        print("every variant of the command is executed without a device: seconds to minutes", file=sys.stderr)


def _named(args: argparse.Namespace) -> tuple[str, list[str]]:
    """Configuration and overrides of a command about one; options may stand between them."""
    words = [*args.words, *args.overrides]
    return (words.pop(0) if words and "=" not in words[0] else "uae_g4u"), words


def _plan(args: argparse.Namespace) -> int:
    _say_that_it_takes_long()
    with _without_warnings():
        from verl_uae.plan.load import ASSUMED_SPREAD
        from verl_uae.plan.planner import Asked, plan
        from verl_uae.plan.report import as_json, render

        args.overrides += [word for word in args.gpus if isinstance(word, str)]
        name, words = _named(args)
        asked = Asked(
            gpu=args.gpu,
            gpus=tuple(dict.fromkeys(count for count in args.gpus if isinstance(count, int))),
            per_node=args.gpus_per_node,
            fixed_batch=args.fixed_batch,
            calibration=args.calibration,
            spread=ASSUMED_SPREAD if args.spread is None else args.spread,
        )
        planner = plan(name, words, asked, caption_tokens=args.caption_tokens)
        rows = planner.rows(lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(as_json(rows, planner), indent=1) if args.json else render(rows, planner))
    return 0


def _reward_server(args: argparse.Namespace) -> int:
    from verl_uae.reward.remote.server import run

    return run(args)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; what trains or asks about training takes Hydra overrides (``key=value``) anywhere among its
    options."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # Hydra deletes a key or group with ~ alone.
    overrides = [word for word in rest if word.startswith("~") or ("=" in word and not word.startswith(("-", "=")))]
    wrong = [word for word in rest if args.command not in _OVERRIDABLE or word not in overrides]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    args.overrides = overrides
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; see :func:`answered` for its exit code."""
    args = parse(argv)
    return answered(lambda: args.run(args))


def answered(run: Callable[[], int | None]) -> int:
    """Exit code of a command: errors raised on purpose, and files that the system refuses, are one line and code 2; an
    interrupt and a closed pipe are 128 plus the number of their signal, as a shell says it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A caption or a file name that the terminal cannot show must not end a command whose work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = int(run() or 0)
        sys.stdout.flush()
        return code
    except UAEError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        print("verl-uae: stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # The interpreter would try once more at its end, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        return _refused(f"{error.filename}: {error.strerror}")


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has enough, as ``head`` has."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _refused(message: str) -> int:
    # Messages of libraries have several lines.
    text = one_line(" ".join(filter(None, map(str.strip, message.split("\n")))))
    print(f"verl-uae: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
