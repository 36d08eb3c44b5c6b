# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae bench discriminate``. Heavy imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path, existing_file, existing_folder

if TYPE_CHECKING:
    from verl_uae.bench.discriminate.worlds import World
    from verl_uae.reward import TermSpec

RESULT, TABLES, VALUES = "discrimination.json", "discrimination.md", "{}.npz"

#: Side in pixels and pairs per call.
SPEED = ("32x16", "256x1", "512x1")


def add_parser(commands: Any) -> None:
    """Add the command to what ``ArgumentParser.add_subparsers`` returned."""
    parser = commands.add_parser("discriminate", help="which reward term sees which damage, and at what cost")
    parser.add_argument("--out", type=argument_path, metavar="DIR", help=f"{RESULT}, {TABLES}, and raw values by world")
    parser.add_argument(
        "--photographs", type=argument_path, metavar="DIR", help="folder of photographs (default: none)"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the photographs, pixels (default 256)")
    parser.add_argument("--scenes", type=int, default=200, help="built-in scenes, 0 for none (default 200)")
    parser.add_argument(
        "--term",
        action="append",
        default=[],
        metavar="YAML",
        help="one more: a name, or an entry as in uae.reward.terms",
    )
    parser.add_argument("--no-defaults", action="store_true", help="only the terms given with --term")
    parser.add_argument("--speed", nargs="*", default=list(SPEED), metavar="SIDExPAIRS", help="what is timed")
    parser.add_argument("--repetitions", type=int, default=7, help="of the timing (default 7)")
    parser.add_argument("--seed", type=int, default=0, help="of damage and bootstrap (default 0)")
    parser.add_argument(
        "--merge", type=argument_path, metavar="FILE", help=f"{RESULT} of the same pictures; keep its terms too"
    )
    parser.add_argument(
        "--render", type=argument_path, metavar="FILE", help=f"print the tables of a {RESULT}, measure nothing"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, or print the tables of a result."""
    for result_file in (args.render, args.merge):
        if result_file is not None:
            existing_file(result_file)
    if args.photographs is not None:
        existing_folder(args.photographs, "--photographs")
    import numpy as np

    from verl_uae.bench.discriminate.measure import build_scorers, not_measured, score_world, term_specs
    from verl_uae.bench.discriminate.result import (
        checkout_commit,
        discrimination_result,
        discrimination_tables,
        merged,
        read_discrimination,
        world_result,
    )
    from verl_uae.files import write_json, write_text

    if args.render is not None:
        print(discrimination_tables(read_discrimination(args.render)), end="")
        return 0
    sizes = _check(args)
    earlier = None if args.merge is None else read_discrimination(args.merge)
    worlds, specs = _worlds(args), term_specs(args.term, defaults=not args.no_defaults)
    scorers = build_scorers(specs)
    args.out.mkdir(parents=True, exist_ok=True)
    missing, command, commit = not_measured(specs), shlex.join(["verl-uae", *sys.argv[1:]]), checkout_commit()
    measured: dict[str, Any] = {}
    speed: dict[str, Any] = {}
    content: dict[str, Any] = {}
    # Written after every part: a long run that is ended leaves what it has.
    for part in (*worlds, "speed"):
        if part in worlds:
            values: dict[str, Any] = score_world(worlds[part], scorers, _progress)
            np.savez_compressed(args.out / VALUES.format(part), **values)
            measured[part] = world_result(worlds[part], values, args.seed)
        else:
            speed = _speed(args, specs, sizes)
        content = discrimination_result(measured, specs, missing, speed, seed=args.seed, command=command, commit=commit)
        content = content if earlier is None else merged(earlier, content)
        write_json(args.out / RESULT, content)
        write_text(args.out / TABLES, discrimination_tables(content))
    print(discrimination_tables(content), end="")
    print(f"not measured: {', '.join(content['not_measured']) or 'none'}")
    return 0


def _check(args: argparse.Namespace) -> list[tuple[int, int]]:
    """Sides and pairs of the timing."""
    sizes = [_size(text) for text in args.speed]
    if args.out is None:
        raise ConfigError("--out", "is needed")
    if args.repetitions < 1:
        raise ConfigError("--repetitions", f"must be at least 1, got {args.repetitions}")
    if not (args.scenes or args.photographs or sizes):
        raise ConfigError("--scenes", "is 0 and there are no --photographs and no --speed: nothing to measure")
    return sizes


def _worlds(args: argparse.Namespace) -> dict[str, World]:
    from verl_uae.bench.discriminate.worlds import photograph_world, scene_world

    found = []
    if args.photographs is not None:
        found.append(photograph_world(args.photographs, args.size, args.seed))
    if args.scenes:
        found.append(scene_world(args.scenes, args.seed))
    return {world.name: world for world in found}


def _speed(args: argparse.Namespace, specs: Sequence[TermSpec], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """By side. The pictures are scenes, enlarged: what a picture shows costs no time."""
    import torch.nn.functional as F

    from verl_uae.bench.discriminate.measure import build_scorers, milliseconds_per_pair
    from verl_uae.bench.discriminate.worlds import draw_scenes
    from verl_uae.scenes.render import render_float

    images = render_float(draw_scenes(8, args.seed))
    found = {}
    for side, pairs in sizes:
        times = milliseconds_per_pair(
            build_scorers(specs, cache_bytes=0, chunk_size=pairs),
            F.interpolate(images, size=(side, side), mode="bilinear"),
            batch_size=pairs,
            repetitions=args.repetitions,
            on_progress=_progress,
        )
        found[str(side)] = {"batch_size": pairs, "clock": "processor time", "terms": times}
    return found


def _size(text: str) -> tuple[int, int]:
    side, _, pairs = text.partition("x")
    if not (side.isdigit() and pairs.isdigit() and int(side) >= 32 and int(pairs) >= 1):
        raise ConfigError("--speed", f"must be a side of at least 32 pixels and pairs per call, as 256x1, got {text!r}")
    return int(side), int(pairs)


def _progress(what: str, done: int, count: int) -> None:
    print(f"{what}: {done} of {count}", file=sys.stderr, flush=True)
