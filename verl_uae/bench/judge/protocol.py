# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Asking: every judge about every picture, in both orders, and what the two answers come to.

A judge that prefers what it sees first would prefer either candidate. So a candidate wins a picture only if the judge
prefers it both as A and as B; two answers that disagree are a tie of their own kind (position swap as in Zheng et al.
2023, arXiv 2306.05685, section 3.4).

Raw answers are kept on disk, so that an interrupted run goes on and nothing is paid for twice: one JSON line per
answer, appended and never changed, under the digest of the whole request: address, model, parameters, prompt, pictures
and order. Answers that cannot be parsed are kept too: asking again until a judge says something else would bias the
result.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from verl_uae.bench.judge.contest import Comparison, Contest, Picture
from verl_uae.bench.judge.judges import Budget, Client, Judge, Limits, body
from verl_uae.bench.judge.question import (
    NO_PREFERENCE,
    A,
    B,
    JudgePrompt,
    Question,
    Verdict,
    VerdictError,
    answer_text,
    ask,
    parse_verdict,
)
from verl_uae.errors import ConfigError, DecodeError

WIN, LOSS, TIE, INCONSISTENT, FAILED = "win", "loss", "tie", "inconsistent", "failed"
"""Of the first candidate."""

ORDERS = (False, True)
"""Whether the candidates are swapped."""

SIDE = 1024
"""Longest side that pictures are sent with, pixels."""

#: Told (pairs done, all pairs); a pair is a picture and a judge.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one question."""

    verdict: Verdict | None
    reason: str = ""
    """Why there is no verdict."""
    text: str = ""
    """What the judge wrote, where it wrote anything."""
    cached: bool = False
    """Whether the answer was there from before."""


@dataclass(frozen=True, slots=True)
class JudgeOutcome:
    """What one judge made of one picture."""

    kind: str
    """`WIN`, `LOSS`, `TIE`, `INCONSISTENT` or `FAILED`."""
    answers: tuple[Answered, ...] = ()
    """First with the first candidate as A, then with the second; empty for identical candidates."""

    @property
    def choices(self) -> tuple[str | None, ...]:
        """Letters that the judge chose, by order."""
        return tuple(answer.verdict.choice if answer.verdict is not None else None for answer in self.answers)

    @property
    def judged(self) -> bool:
        return self.kind != FAILED


@dataclass(frozen=True, slots=True)
class Judged:
    """A contest with the outcomes."""

    contest: Contest
    judges: tuple[Judge, ...]
    outcomes: Mapping[str, Mapping[str, JudgeOutcome]]
    """By judge and `Comparison.key`."""
    requests: int
    """Sent now, further tries included."""
    cached: int
    """Answers found in the cache."""
    damaged: int
    """Lines of the cache that could not be read."""


def request_key(judge: Judge, parts: Sequence[str | Picture], side: int) -> str:
    """SHA-256 of everything that an answer depends on; pictures enter by the digest of their pixels.

    Args:
        judge: its name does not count.
        parts: of the question, in the order shown.
        side: longest side that pictures are sent with, pixels.
    """
    content = [part if isinstance(part, str) else {"picture": part.digest, "side": side} for part in parts]
    request = {"url": judge.url, "settings": judge.settings(), "content": content}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by `request_key`; a context manager that holds the file against other processes.

    Args:
        path: JSON lines; made if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.damaged = 0
        """Lines that are no entry, such as one that a kill cut short."""
        self._file: BinaryIO | None = None

    def __enter__(self) -> AnswerCache:
        """Open and read.

        Raises:
            ConfigError: the file cannot be opened, or another process writes to it.
        """
        try:
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise ConfigError("answers", f"cannot open {self.path}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError("answers", f"{self.path} is in use by another process") from error
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        line = b"\n"
        for line in self._file:
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                self.damaged += 1
                continue
            if isinstance(key, str) and isinstance(answer, dict):
                self.answers.setdefault(key, answer)
            else:
                self.damaged += 1
        if not line.endswith(b"\n"):
            # Cut short by a kill: the next entry starts a line of its own.
            self._file.write(b"\n")

    def add(self, key: str, answer: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Append an answer and see it onto the disk.

        Args:
            key: of the request.
            answer: body of the response.
            about: for the reader of the file: judge, picture, order.
        """
        assert self._file is not None, "the cache is not open"
        line = json.dumps({"key": key, **about, "answer": answer}) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.answers.setdefault(key, answer)


def combine(answers: Sequence[Answered]) -> str:
    """The kind of outcome of two answers: first candidate as A, then as B."""
    if any(answer.verdict is None for answer in answers):
        return FAILED
    plain, swapped = (answer.verdict.choice for answer in answers if answer.verdict is not None)
    decided = {(A, B): WIN, (B, A): LOSS, (NO_PREFERENCE, NO_PREFERENCE): TIE}
    return decided.get((plain, swapped), INCONSISTENT)


def questions(contest: Contest, prompt: JudgePrompt) -> Iterator[Question]:
    """All that every judge is asked; pairs of identical candidates are not asked about."""
    for comparison in contest.comparisons:
        if not comparison.identical:
            yield from (ask(prompt, comparison, swapped) for swapped in ORDERS)


def count_requests(
    contest: Contest, judges: Sequence[Judge], prompt: JudgePrompt, cache: AnswerCache, side: int = SIDE
) -> tuple[int, int]:
    """(requests without further tries, answers that are there already)."""
    keys = [request_key(judge, question.parts, side) for question in questions(contest, prompt) for judge in judges]
    known = sum(key in cache.answers for key in keys)
    return len(keys) - known, known


async def judge_contest(
    contest: Contest,
    judges: Sequence[Judge],
    prompt: JudgePrompt,
    cache: AnswerCache,
    *,
    limits: Limits | None = None,
    max_requests: int | None = None,
    concurrency: int = 4,
    side: int = SIDE,
    on_progress: Progress | None = None,
) -> Judged:
    """Ask all judges, each about one picture after the other, both orders of a picture in a row.

    What fails is an outcome and never an error: an answer that is missing or does not parse, a judge that is given up,
    a budget that is spent.

    Args:
        contest: what to compare.
        judges: whom to ask.
        prompt: what to ask.
        cache: open; answers in it are not asked for again, new ones are added.
        limits: of each request.
        max_requests: sent at most, by all judges together and with further tries.
        concurrency: requests at a time per judge.
        side: longest side of pictures, pixels.
        on_progress: called after each picture and judge.

    Raises:
        ConfigError: the token of a judge is not there.
    """
    budget = Budget(max_requests)
    outcomes: dict[str, dict[str, JudgeOutcome]] = {judge.name: {} for judge in judges}
    total = len(judges) * len(contest.comparisons)

    async def work(client: Client, comparisons: Iterator[Comparison]) -> None:
        for comparison in comparisons:
            outcomes[client.judge.name][comparison.key] = await _judge_comparison(
                client, comparison, prompt, cache, side
            )
            if on_progress is not None:
                on_progress(sum(map(len, outcomes.values())), total)

    async with AsyncExitStack() as stack:
        workers = []
        for judge in judges:
            client = await stack.enter_async_context(Client(judge, limits or Limits(), budget))
            # Shared by the workers of a judge: each takes the next picture.
            comparisons = iter(contest.comparisons)
            workers += [work(client, comparisons) for _ in range(concurrency)]
        await asyncio.gather(*workers)
    in_order = {
        name: {comparison.key: found[comparison.key] for comparison in contest.comparisons}
        for name, found in outcomes.items()
    }
    answers = [answer for found in in_order.values() for outcome in found.values() for answer in outcome.answers]
    cached = sum(answer.cached for answer in answers)
    return Judged(contest, tuple(judges), in_order, budget.sent, cached, cache.damaged)


async def _judge_comparison(
    client: Client, comparison: Comparison, prompt: JudgePrompt, cache: AnswerCache, side: int
) -> JudgeOutcome:
    if comparison.identical:
        return JudgeOutcome(TIE)
    answers = tuple([await _answer(client, ask(prompt, comparison, swapped), cache, side) for swapped in ORDERS])
    return JudgeOutcome(combine(answers), answers)


async def _answer(client: Client, question: Question, cache: AnswerCache, side: int) -> Answered:
    key = request_key(client.judge, question.parts, side)
    found = cache.answers.get(key)
    cached = found is not None
    if found is None:
        try:
            request = body(client.judge, question.parts, side)
        except DecodeError as error:
            return Answered(None, str(error))
        reply = await client.ask(request)
        if reply.answer is None:
            return Answered(None, reply.reason)
        about = {"judge": client.judge.name, "file": question.comparison.key, "swapped": question.swapped}
        cache.add(key, reply.answer, about)
        found = reply.answer
    return _parsed(found, question.nonce, cached)


def _parsed(answer: Mapping[str, object], nonce: str | None, cached: bool) -> Answered:
    text = ""
    try:
        text = answer_text(answer)
        return Answered(parse_verdict(answer, nonce), "", text, cached)
    except VerdictError as error:
        return Answered(None, str(error), text, cached)
