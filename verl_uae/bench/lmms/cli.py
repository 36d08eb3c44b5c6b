# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae bench tasks`` and ``guard``. Heavy imports are lazy."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path, existing_file


def add_parsers(commands: Any) -> None:
    """Add the commands to those of ``verl-uae bench``."""
    tasks = commands.add_parser("tasks", help="folder of task files, for --include_path of lmms-eval")
    tasks.set_defaults(run=_tasks)
    guard = commands.add_parser("guard", help="what RL unlearned: two results of lmms-eval, before and after")
    guard.add_argument("before", type=argument_path, help="*_results.json")
    guard.add_argument("after", type=argument_path, help="*_results.json")
    guard.add_argument("--max-drop", type=float, required=True, metavar="POINTS", help="exit code 1 beyond it")
    guard.add_argument("--watch", action="append", metavar="TASK:METRIC", help="default: those of reading")
    guard.add_argument("--out", type=argument_path, metavar="FILE", help="also write JSON")
    guard.set_defaults(run=_guard)


def _tasks(_: argparse.Namespace) -> int:
    from verl_uae.bench.lmms import TASKS

    print(TASKS)
    return 0


def _guard(args: argparse.Namespace) -> int:
    if not args.max_drop >= 0:
        raise ConfigError("--max-drop", f"must be at least 0, got {args.max_drop}")
    for path in (args.before, args.after):
        existing_file(path)
    from verl_uae.bench.lmms.guard import exceeded, read_changes, render
    from verl_uae.bench.unified import write_result

    changes = read_changes(args.before, args.after, args.watch)
    beyond = exceeded(changes, args.max_drop)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"passed": not beyond, "max_drop": args.max_drop, "changes": [asdict(change) for change in changes]}
        write_result(args.out, content)
    print(render(changes, args.max_drop), end="")
    return 1 if beyond else 0
