# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bench.judge.server import Judges, always_a, always_tie, brighter, longer, serving
from tests.chain.conftest import picture
from verl_uae.bench.judge.contest import CAPTION, Contest, load_prompt, read_contest
from verl_uae.bench.judge.judges import Judge, Limits
from verl_uae.bench.judge.protocol import AnswerCache, Judged, judge_contest

#: Characters of the captions of both candidates: the first is longer 3 times, shorter 2 times, as long once.
LENGTHS = [(9, 3), (9, 3), (9, 3), (3, 9), (3, 9), (6, 6)]

FAST = Limits(timeout=5.0, retries=2, backoff=0.01, max_wait=1.0, patience=100)


@pytest.fixture
def server() -> Iterator[Judges]:
    named = {"longer": longer, "always-a": always_a, "always-tie": always_tie, "brighter": brighter}
    with serving(Judges(dict(named))) as judges:
        yield judges


@pytest.fixture
def judge(server: Judges) -> Callable[..., Judge]:
    """``judge(model)``: one of the server's judges, by the name of its model."""
    return lambda model, **settings: Judge(model, server.base_url, model, **settings)


def write_captions(path: Path, captions: Sequence[str]) -> Path:
    lines = (json.dumps({"file": f"{index}.png", "caption": text}) + "\n" for index, text in enumerate(captions))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with ``images`` and two captions files ``first.jsonl`` and ``second.jsonl`` of `LENGTHS`."""
    (tmp_path / "images").mkdir()
    for index in range(len(LENGTHS)):
        picture(index, 40, 30).save(tmp_path / "images" / f"{index}.png")
    write_captions(tmp_path / "first.jsonl", ["f" * first for first, _ in LENGTHS])
    write_captions(tmp_path / "second.jsonl", ["s" * second for _, second in LENGTHS])
    return tmp_path


@pytest.fixture
def contest(world: Path) -> Contest:
    return read_contest(world / "images", f"one={world / 'first.jsonl'}", f"two={world / 'second.jsonl'}", CAPTION)


@pytest.fixture
def decide(tmp_path: Path) -> Callable[..., Judged]:
    """``decide(contest, judges, **options)``: the whole protocol with quick limits; answers stay in one cache."""

    def run(contest: Contest, judges: Sequence[Judge], prompt: str | None = None, **options: Any) -> Judged:
        options = {"limits": FAST, **options}
        with AnswerCache(tmp_path / "answers.jsonl") as cache:
            return asyncio.run(judge_contest(contest, judges, load_prompt(prompt, contest.mode), cache, **options))

    return run
