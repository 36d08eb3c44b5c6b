# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae bench judge``. Heavy imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from verl_uae.bench.results import check_least, own_command, without_overall
from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path, existing_folder, existing_place, named_path

RESULT, REPORT, ANSWERS = "judge.json", "judge.html", "answers.jsonl"


def add_judge(commands: Any) -> None:
    """Add ``judge`` to the sub-commands of ``bench``."""
    parser = commands.add_parser("judge", help="protocol 2: language models compare two candidates, in both orders")
    parser.add_argument("images", type=argument_path, help="folder of originals")
    what = "captions.jsonl, result.json, or a folder of captions or pictures"
    parser.add_argument("first", metavar="[NAME=]FIRST", help=f"{what}; rates are those of this candidate")
    parser.add_argument("second", metavar="[NAME=]SECOND", help="what it is compared with")
    parser.add_argument("--mode", choices=("caption", "reconstruction"), default="caption", help="default: caption")
    parser.add_argument("--judge", action="append", default=[], metavar="NAME=BASE_URL#MODEL", help="may be repeated")
    parser.add_argument("--judges", type=argument_path, metavar="FILE.yaml", help="more judges, with their parameters")
    token = "environment variable with a token"
    parser.add_argument("--token-env", action="append", default=[], metavar="NAME=VARIABLE", help=token)
    parser.add_argument("--prompt", metavar="NAME|FILE", help="default: the prompt of the mode; caption_blind")
    written = f"{RESULT}, {REPORT}, {ANSWERS}"
    parser.add_argument("--out", type=argument_path, required=True, metavar="DIR", help=written)
    parser.add_argument("--dry-run", action="store_true", help="say how many requests it takes, and send none")
    parser.add_argument("--max-requests", type=int, metavar="N", help="send at most N, further tries included")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time per judge (default 4)")
    parser.add_argument("--timeout", type=float, default=120.0, help="of a request as a whole, seconds (default 120)")
    parser.add_argument("--retries", type=int, default=3, help="further tries of a request (default 3)")
    parser.add_argument("--max-wait", type=float, default=60.0, help="longest wait between tries, s (default 60)")
    parser.add_argument("--side", type=int, default=1024, help="longest side of pictures sent, pixels (default 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.set_defaults(run=_judge)


def _judge(args: argparse.Namespace) -> int:
    existing_folder(args.images, "images")
    for candidate in (args.first, args.second):
        existing_place(named_path(candidate)[1])
    from verl_uae.bench.judge.contest import load_prompt, read_contest
    from verl_uae.bench.judge.judges import Limits, choose_judges
    from verl_uae.bench.judge.protocol import AnswerCache, count_requests, judge_contest
    from verl_uae.bench.judge.result import judge_result, write_report
    from verl_uae.files import write_json

    check_least(args, {"--max-requests": 0, "--concurrency": 1, "--retries": 0, "--side": 16, "--max-wait": 0})
    if not args.timeout > 0:
        raise ConfigError("--timeout", f"must be positive, got {args.timeout}")
    judges = choose_judges(args.judge, args.judges, args.token_env)
    prompt = load_prompt(args.prompt, args.mode)
    contest = read_contest(args.images, args.first, args.second, args.mode)
    if args.out.resolve().is_relative_to(args.images.resolve()):
        raise ConfigError("--out", f"{args.out} lies in {args.images}")
    args.out.mkdir(parents=True, exist_ok=True)
    with AnswerCache(args.out / ANSWERS) as cache:
        if args.dry_run:
            wanted, known = count_requests(contest, judges, prompt, cache, args.side)
            identical = sum(comparison.identical for comparison in contest.comparisons)
            print(
                f"{wanted} requests: {len(contest.comparisons)} pictures, {identical} of them with identical "
                f"candidates, 2 orders, {len(judges)} judges, {known} answers from before"
            )
            print(f"at most {wanted * (args.retries + 1)} with all further tries")
            for failure in contest.failures[:20]:
                print(f"  {failure.what}: {failure.reason}")
            return 0
        for judge in judges:
            # Before the first request of any judge is paid for.
            judge.token()
        judging = judge_contest(
            contest,
            judges,
            prompt,
            cache,
            limits=Limits(timeout=args.timeout, retries=args.retries, max_wait=args.max_wait),
            max_requests=args.max_requests,
            concurrency=args.concurrency,
            side=args.side,
            on_progress=lambda n, count: print(f"judging: {n} of {count}", file=sys.stderr, flush=True),
        )
        judged = asyncio.run(judging)
    content = judge_result(judged, prompt, side=args.side, seed=args.seed)
    write_json(args.out / RESULT, content)
    write_report(args.out / REPORT, content, judged, command=own_command())
    _say(content)
    print(args.out / REPORT)
    return 0 if content["complete"] else 1


def _say(content: Mapping[str, Any]) -> None:
    from verl_uae.bench.judge.result import rate_text

    first, second = content["candidates"]["first"], content["candidates"]["second"]
    print(f"{first} against {second}, {content['mode']}")
    for name, entry in content["judges"].items():
        counts = ", ".join(f"{entry[key]} {key}" for key in ("wins", "losses", "ties", "inconsistent", "failed"))
        titles = {"win_rate": "win rate", "win_rate_without_ties": "without ties", "first_position": "A chosen"}
        rates = ", ".join(f"{title} {rate_text(entry[key]) or 'none'}" for key, title in titles.items())
        print(f"{name}: {counts}\n  {rates}")
    if len(content["judges"]) > 1:
        kappa = content["agreement"]["fleiss"]["kappa"]
        print(f"majority: win rate {rate_text(content['majority']['win_rate']) or 'none'}")
        print(f"agreement: Fleiss' kappa {'not defined' if kappa is None else format(kappa, '.3f')}")
    if content["complete"]:
        print(f"overall: {content['overall']:.2f}")
    else:
        print(without_overall(content["failures"]))
    sent = content["sent"]
    print(f"{sent['requests']} requests sent, {sent['from_cache']} answers from before")
