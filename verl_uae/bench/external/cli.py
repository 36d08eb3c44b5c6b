# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae bench draw-prompts``, ``read`` and ``scores``. Heavy imports are lazy."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from verl_uae.bench.external import BENCHES
from verl_uae.bench.results import check_least, named_files
from verl_uae.chain.cli import add_model_arguments, check_model_arguments, load_pipeline
from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path, existing_file, existing_folder, existing_place


def add_parsers(commands: Any) -> None:
    """Add the commands to those of ``verl-uae bench``."""
    parser = commands.add_parser("draw-prompts", help="draw GenEval, GenEval++ or DPG-Bench for its own scorer")
    parser.add_argument("benchmark", choices=BENCHES)
    source = "evaluation_metadata.jsonl, Geneval++.jsonl, or a folder of .txt"
    parser.add_argument("prompts", type=argument_path, help=source)
    add_model_arguments(parser, "--model")
    parser.add_argument("--rewritten", type=argument_path, metavar="PATH", help="draw these texts; the metadata stays")
    written = "images/, manifest.json, records"
    parser.add_argument("--out", type=argument_path, required=True, metavar="DIR", help=written)
    parser.add_argument("--samples", type=int, help="per prompt (default: the benchmark's: 4, 1, 4)")
    parser.add_argument("--resolution", type=int, help="side of a sample in its file, pixels (default: as drawn)")
    parser.add_argument("--grid", action="store_true", help="geneval: also grid.png, which the scorer ignores")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="share of this process, from 0 (default 0/1)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial noise (default 0)")
    parser.set_defaults(run=_draw)
    read = commands.add_parser("read", help="what the scorer of GenEval, GenEval++ or DPG-Bench wrote, as one JSON")
    read.add_argument("benchmark", choices=BENCHES)
    read.add_argument("results", type=argument_path, help="results.jsonl, Output.json, or *_results.txt")
    read.add_argument("--drawn", type=argument_path, metavar="DIR", help="--out of draw-prompts")
    read.add_argument("--prompts", type=argument_path, metavar="PATH", help="instead: the benchmark's prompts")
    texts = "with --prompts: the texts that were drawn"
    read.add_argument("--rewritten", type=argument_path, metavar="PATH", help=texts)
    read.add_argument("--prompt-set", choices=("original", "rewritten"), help="with --prompts: which were drawn")
    read.add_argument("--samples", type=int, help="with --prompts: samples per prompt (default: the benchmark's)")
    questions = "dpg_bench.csv: categories from the answers"
    read.add_argument("--questions", type=argument_path, metavar="CSV", help=questions)
    read.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    read.add_argument("--out", type=argument_path, required=True, metavar="FILE", help="JSON to write")
    read.set_defaults(run=_read)
    table = commands.add_parser("scores", help="files of `bench read` side by side, as Markdown tables")
    table.add_argument("results", nargs="+", metavar="[NAME=]FILE")
    table.set_defaults(run=_scores)


def _draw(args: argparse.Namespace) -> int:
    if args.model is None:
        raise ConfigError("--model", "needed")
    check_model_arguments(args)
    existing_place(args.prompts, "prompts")
    if args.rewritten is not None:
        existing_place(args.rewritten, "--rewritten")
    from verl_uae.bench.draw import DrawSettings
    from verl_uae.bench.external.prompts import MANIFEST, draw_prompts, read_manifest, read_prompts

    check_least(args, {"--resolution": 1})
    index, _, count = args.shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ConfigError("--shard", f"must be I/N with I from 0 to N-1, got {args.shard!r}")
    prompts = read_prompts(args.benchmark, args.prompts, args.rewritten, samples=args.samples)
    pipe = load_pipeline(args)
    drawn = draw_prompts(
        pipe,
        prompts,
        args.out,
        DrawSettings(model=args.model, captioner=args.captioner, seed=args.seed),
        resolution=args.resolution,
        with_grid=args.grid,
        shard=(int(index), int(count)),
        on_picture=lambda done, total: print(f"drawing: {done} of {total}", file=sys.stderr, flush=True),
    )
    print(f"{drawn.pictures} pictures, {drawn.kept} of them from before", file=sys.stderr)
    if drawn.truncated:
        print(f"{drawn.truncated} of them of prompts longer than the condition", file=sys.stderr)
    scorer = read_manifest(args.out)["scorer"]
    print(f"{args.out / MANIFEST}\nscorer: {scorer['repository']}\n{scorer['command']}")
    return 0


def _read(args: argparse.Namespace) -> int:
    if args.questions is not None and args.benchmark != "dpg":
        raise ConfigError("--questions", "is for dpg")
    existing_file(args.results)
    if args.drawn is not None:
        existing_folder(args.drawn, "--drawn")
    if args.prompts is not None:
        existing_place(args.prompts, "--prompts")
    if (args.drawn is None) == (args.prompts is None):
        raise ConfigError("--drawn", "give either --drawn or --prompts")
    options = {"rewritten": args.rewritten, "samples": args.samples, "name": args.prompt_set}
    for key in ("rewritten", "prompt_set", "samples") if args.drawn is not None else ():
        if getattr(args, key) is not None:
            raise ConfigError(f"--{key.replace('_', '-')}", "goes with --prompts; --drawn knows it")
    from verl_uae.bench.external import scorers
    from verl_uae.bench.external.prompts import read_drawn, read_prompts
    from verl_uae.bench.external.result import scores_result, scores_tables
    from verl_uae.files import write_json

    if args.drawn is not None:
        expected = read_drawn(args.benchmark, args.drawn)
    else:
        expected = read_prompts(args.benchmark, args.prompts, **options)
    files = [args.results]
    if args.benchmark == "dpg":
        finding = scorers.read_dpg(args.results, expected, args.seed, args.questions)
        files += [] if args.questions is None else [scorers.detail_of(args.results), args.questions]
    else:
        read = scorers.read_geneval if args.benchmark == "geneval" else scorers.read_genevalpp
        finding = read(args.results, expected, args.seed)
    content = scores_result(finding, expected, files, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, content)
    print(scores_tables({args.out.stem: content}), end="")
    return 0 if content["complete"] else 1


def _scores(args: argparse.Namespace) -> int:
    files = named_files(args.results)
    from verl_uae.bench.external.result import read_scores, scores_tables

    print(scores_tables({name: read_scores(path) for name, path in files.items()}), end="")
    return 0
