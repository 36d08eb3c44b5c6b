# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae bench``. Heavy imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from verl_uae.bench.external.cli import add_parsers as add_external_parsers
from verl_uae.bench.judge.cli import add_judge
from verl_uae.bench.results import CAPTIONS, RESULT, check_least, named_files, own_command, without_overall
from verl_uae.chain.cli import (
    add_engine_argument,
    add_model_arguments,
    check_model_arguments,
    load_for_captions,
    load_pipeline,
)
from verl_uae.devices import checked_device
from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path, existing_file, existing_folder

if TYPE_CHECKING:
    from verl_uae.bench.backbones import Backbone
    from verl_uae.bench.draw import Drawn

REPORT = "report.html"

DISCRIMINATION, TABLES, VALUES = "discrimination.json", "discrimination.md", "{}.npz"

#: Side in pixels and pairs per call.
SPEED = ("32x16", "256x1", "512x1")


def add_parser(subparsers: Any) -> None:
    """Add the ``bench`` command to what ``ArgumentParser.add_subparsers`` returned."""
    parser = subparsers.add_parser("bench", help="Unified-Bench: how close are reconstructions to their originals")
    commands = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    _add_unified(commands)
    add_judge(commands)
    table = commands.add_parser("compare", help="results side by side, as a Markdown table")
    table.add_argument("results", nargs="+", metavar="[NAME=]FILE", help=f"{RESULT} files")
    table.add_argument("--tolerance", type=int, metavar="WORDS", help="two columns more: captions of equal length")
    table.add_argument("--seed", type=int, default=0, help="of their bootstrap (default 0)")
    table.set_defaults(run=_compare)
    length = commands.add_parser("length", help="two results on captions of equal length")
    length.add_argument("results", nargs=2, metavar="FILE", help=f"{RESULT} files with captions")
    length.add_argument("--tolerance", type=int, default=5, help="largest difference, words (default 5)")
    length.add_argument("--same-picture", action="store_true", help="match captions of the same picture only")
    length.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    length.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    length.set_defaults(run=_length)
    _add_discriminate(commands)
    scenes = commands.add_parser("scenes", help="SceneEval: GenEval's six categories, exact, in the built-in world")
    add_model_arguments(scenes)
    scenes.add_argument("--out", type=argument_path, metavar="FILE", help="JSON with every answer")
    scenes.add_argument("--items", type=int, default=32, help="per category (default 32)")
    scenes.add_argument("--seed", type=int, default=0, help="of items, noise and bootstrap (default 0)")
    scenes.set_defaults(run=_scenes)
    published = commands.add_parser("published", help="the paper's tables, and which rows do not add up")
    published.set_defaults(run=_published)
    add_external_parsers(commands)
    tasks = commands.add_parser("tasks", help="folder of task files, for --include_path of lmms-eval")
    tasks.set_defaults(run=_tasks)
    guard = commands.add_parser("guard", help="what RL unlearned: two results of lmms-eval, before and after")
    guard.add_argument("before", type=argument_path, help="*_results.json")
    guard.add_argument("after", type=argument_path, help="*_results.json")
    guard.add_argument("--max-drop", type=float, required=True, metavar="POINTS", help="exit code 1 beyond it")
    guard.add_argument("--watch", action="append", metavar="TASK:METRIC", help="default: those of reading")
    guard.add_argument("--out", type=argument_path, metavar="FILE", help="also write JSON")
    guard.set_defaults(run=_guard)


def _add_unified(commands: Any) -> None:
    parser = commands.add_parser("unified", help="protocol 1: four backbones, mean cosine, with intervals")
    parser.add_argument("images", type=argument_path, help="folder of originals")
    parser.add_argument("--generated", type=argument_path, metavar="DIR", help="folder of ready reconstructions")
    add_model_arguments(parser, "--model")
    parser.add_argument(
        "--captions", type=argument_path, metavar="FILE", help="JSON lines: draw these; or those of --generated"
    )
    parser.add_argument(
        "--out", type=argument_path, required=True, metavar="DIR", help=f"{RESULT}, {REPORT}, {CAPTIONS}"
    )
    parser.add_argument("--backbone", action="append", default=[], metavar="NAME=PATH", help="instead of the default")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="backbones; fewer than four are an incomplete result")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs per backbone call (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, sampled captions and bootstrap (default 0)")
    add_engine_argument(parser, "auto")
    parser.set_defaults(run=_unified)


def _add_discriminate(commands: Any) -> None:
    parser = commands.add_parser("discriminate", help="which reward term sees which damage, and at what cost")
    parser.add_argument(
        "--out", type=argument_path, metavar="DIR", help=f"{DISCRIMINATION}, {TABLES}, and raw values by world"
    )
    parser.add_argument(
        "--photographs", type=argument_path, metavar="DIR", help="folder of photographs (default: none)"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the photographs, pixels (default 256)")
    parser.add_argument("--scenes", type=int, default=200, help="built-in scenes, 0 for none (default 200)")
    entry = "one more: a name, or an entry as in uae.reward.terms"
    parser.add_argument("--term", action="append", default=[], metavar="YAML", help=entry)
    parser.add_argument("--no-defaults", action="store_true", help="only the terms given with --term")
    parser.add_argument("--speed", nargs="*", default=list(SPEED), metavar="SIDExPAIRS", help="what is timed")
    parser.add_argument("--repetitions", type=int, default=7, help="of the timing (default 7)")
    parser.add_argument("--seed", type=int, default=0, help="of damage and bootstrap (default 0)")
    earlier = f"{DISCRIMINATION} of the same pictures; keep its terms too"
    parser.add_argument("--merge", type=argument_path, metavar="FILE", help=earlier)
    tables = f"print the tables of a {DISCRIMINATION}, measure nothing"
    parser.add_argument("--render", type=argument_path, metavar="FILE", help=tables)
    parser.set_defaults(run=_discriminate)


def _unified(args: argparse.Namespace) -> int:
    if (args.generated is None) == (args.model is None):
        raise ConfigError("--generated", "give either --generated or --model")
    check_least(args, {"--batch-size": 1})
    existing_folder(args.images, "images")
    if args.model is not None:
        check_model_arguments(args)
    else:
        existing_folder(args.generated, "--generated")
    if args.captions is not None:
        existing_file(args.captions, "--captions")
    from verl_uae.bench.backbones import choose
    from verl_uae.bench.pairs import captions_by_key, find_pairs
    from verl_uae.bench.unified import score, unified_result, write_report
    from verl_uae.data.captions import read_captions
    from verl_uae.files import write_json, write_text

    backbones = choose(args.backbone, args.only)
    captions = None if args.captions is None else read_captions(args.captions)
    drawn = None if args.model is None else _draw(args, captions, backbones)
    args.out.mkdir(parents=True, exist_ok=True)
    if drawn is None:
        pairing = find_pairs(args.generated, args.images)
        captions = captions_by_key(captions or {}, sorted(pair.key for pair in pairing.pairs))
        if captions:
            lines = (json.dumps({"file": key, "caption": caption}) for key, caption in captions.items())
            write_text(args.out / CAPTIONS, "".join(f"{line}\n" for line in lines))
    else:
        pairing = find_pairs(drawn.pictures, args.images, drawn.reasons)
        captions = drawn.captions
    scores = score(
        pairing, backbones, device=checked_device(args.device), batch_size=args.batch_size, on_progress=_progress
    )
    drawing = None if drawn is None else drawn.settings
    content = unified_result(scores, seed=args.seed, captions=captions, drawing=drawing)
    write_json(args.out / RESULT, content)
    write_report(args.out / REPORT, content, pairing.pairs, command=own_command())
    _say(content["verl_uae"])
    print(args.out / REPORT)
    return 0 if content["verl_uae"]["complete"] else 1


def _draw(args: argparse.Namespace, captions: Mapping[str, str] | None, backbones: Sequence[Backbone]) -> Drawn:
    from verl_uae.bench.backbones import check_available
    from verl_uae.bench.draw import DrawSettings, draw_folder

    pipe, captions_first = load_for_captions(args) if captions is None else (load_pipeline(args), None)
    if captions is None and (pipe.captioner is None or pipe.processor is None):
        raise ConfigError("--model", "has no captioner: pass --captioner or --captions")
    # The hub is asked when everything else is known to be possible, and before anything is drawn.
    check_available(backbones)
    engine = "transformers" if captions_first is None else "vllm"
    settings = DrawSettings(model=args.model, captioner=args.captioner, seed=args.seed, captioner_engine=engine)
    drawn = draw_folder(
        pipe, args.images, args.out, settings, captions, lambda n, m: _progress("drawing", n, m), captions_first
    )
    print(f"{len(drawn.captions)} reconstructions, {drawn.kept} of them from before", file=sys.stderr)
    return drawn


def _progress(what: str, done: int, count: int) -> None:
    print(f"{what}: {done} of {count}", file=sys.stderr, flush=True)


def _say(section: Mapping[str, Any]) -> None:
    bounds = section["confidence_intervals"]
    scores = [(name, mean, bounds["by_model"][name]) for name, mean in section["means"].items()]
    if section["complete"]:
        scores.append(("overall", section["overall"], bounds["overall"]))
    for name, mean, (low, high) in scores:
        print(f"{name}: {mean:.2f} (95% interval {low:.2f} to {high:.2f})")
    if section["complete"]:
        print(f"held out (without CLIP): {section['held_out']:.2f}")
    else:
        print(without_overall(section["failures"]))


def _compare(args: argparse.Namespace) -> int:
    files = named_files(args.results)
    check_least(args, {"--tolerance": 0}, "words")
    from verl_uae.bench.compare import comparison_table
    from verl_uae.bench.unified import read_unified

    results = {name: read_unified(path) for name, path in files.items()}
    print(comparison_table(results, args.tolerance, args.seed), end="")
    return 0


def _length(args: argparse.Namespace) -> int:
    files = [existing_file(path) for path in args.results]
    from verl_uae.bench.compare import compare_lengths, length_table
    from verl_uae.bench.unified import read_unified

    first, second = map(read_unified, files)
    found = compare_lengths(first, second, tolerance=args.tolerance, same_picture=args.same_picture, seed=args.seed)
    print(json.dumps(found, indent=2) if args.json else length_table(found), end="\n" if args.json else "")
    return 0


def _discriminate(args: argparse.Namespace) -> int:
    for result_file in (args.render, args.merge):
        if result_file is not None:
            existing_file(result_file)
    if args.photographs is not None:
        existing_folder(args.photographs, "--photographs")
    import numpy as np

    from verl_uae.bench import discriminate as bench
    from verl_uae.bench.damage import photograph_world, scene_world
    from verl_uae.files import write_json, write_text

    if args.render is not None:
        print(bench.discrimination_tables(bench.read_discrimination(args.render)), end="")
        return 0
    sizes = [_size(text) for text in args.speed]
    if args.out is None:
        raise ConfigError("--out", "is needed")
    check_least(args, {"--repetitions": 1})
    if not (args.scenes or args.photographs or sizes):
        raise ConfigError("--scenes", "is 0 and there are no --photographs and no --speed: nothing to measure")
    earlier = None if args.merge is None else bench.read_discrimination(args.merge)
    worlds = [] if args.photographs is None else [photograph_world(args.photographs, args.size, args.seed)]
    worlds += [scene_world(args.scenes, args.seed)] if args.scenes else []
    specs = bench.term_specs(args.term, defaults=not args.no_defaults)
    scorers = bench.build_scorers(specs)
    args.out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    speed: dict[str, Any] = {}
    about: dict[str, Any] = {"seed": args.seed, "command": own_command()}
    # Written after every part: a long run that is ended leaves what it has.
    for world in (*worlds, None):
        if world is None:
            speed = bench.speed(specs, sizes, args.repetitions, args.seed, _progress)
        else:
            values: dict[str, Any] = bench.score_world(world, scorers, _progress)
            np.savez_compressed(args.out / VALUES.format(world.name), **values)
            measured[world.name] = bench.world_result(world, values, args.seed)
        content = bench.discrimination_result(measured, specs, bench.not_measured(specs), speed, **about)
        content = content if earlier is None else bench.merged(earlier, content)
        write_json(args.out / DISCRIMINATION, content)
        write_text(args.out / TABLES, bench.discrimination_tables(content))
        write_text(args.out / REPORT, bench.discrimination_page(content))
    print(bench.discrimination_tables(content), end="")
    print(f"not measured: {', '.join(content['not_measured']) or 'none'}")
    return 0


def _size(text: str) -> tuple[int, int]:
    """Side and pairs of a timing."""
    side, _, pairs = text.partition("x")
    if not (side.isdigit() and pairs.isdigit() and int(side) >= 32 and int(pairs) >= 1):
        raise ConfigError("--speed", f"must be a side of at least 32 pixels and pairs per call, as 256x1, got {text!r}")
    return int(side), int(pairs)


def _scenes(args: argparse.Namespace) -> int:
    check_least(args, {"--items": 1})
    check_model_arguments(args)
    from verl_uae.bench.scenes import scene_eval, scene_table
    from verl_uae.files import write_json
    from verl_uae.scenes.render import IMAGE_SIZE

    if args.size not in (None, IMAGE_SIZE):
        raise ConfigError("--size", f"the scenes have {IMAGE_SIZE} x {IMAGE_SIZE} pixels, got {args.size}")
    found = scene_eval(load_pipeline(args), seed=args.seed, count=args.items)
    if args.out is not None:
        write_json(args.out, found)
    print(scene_table(found))
    return 0


def _published(args: argparse.Namespace) -> int:
    from verl_uae.bench.compare import PUBLISHED, SOURCE

    print(f"Unified-Bench as published ({SOURCE})")
    for row in PUBLISHED:
        note = "" if row.adds_up else f"  printed overall does not match: the mean is {row.recomputed:.2f}"
        means = "  ".join(f"{value:5.2f}" for value in (*row.columns, row.overall))
        print(f"Table {row.table:2d}  {row.model:14s}  {means}{note}")
    return 0


def _tasks(_: argparse.Namespace) -> int:
    from verl_uae.bench.lmms import TASKS

    print(TASKS)
    return 0


def _guard(args: argparse.Namespace) -> int:
    check_least(args, {"--max-drop": 0})
    for path in (args.before, args.after):
        existing_file(path)
    from verl_uae.bench.lmms import exceeded, guard_table, read_changes
    from verl_uae.files import write_json

    changes = read_changes(args.before, args.after, args.watch)
    beyond = exceeded(changes, args.max_drop)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"passed": not beyond, "max_drop": args.max_drop, "changes": [asdict(change) for change in changes]}
        write_json(args.out, content)
    print(guard_table(changes, args.max_drop), end="")
    return 1 if beyond else 0
