# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Asking: every judge about every picture, in both orders, and what the two answers come to.

A judge that prefers what it sees first would prefer either candidate. So a candidate wins a picture only if the judge
prefers it both as A and as B; two answers that disagree are a tie of their own kind (position swap as in Zheng et al.
2023, arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from verl_uae.bench.judge import verdict
from verl_uae.bench.judge.cache import AnswerCache, request_key
from verl_uae.bench.judge.client import Budget, Client, Limits, body
from verl_uae.bench.judge.contest import Contest, Item
from verl_uae.bench.judge.judges import Judge
from verl_uae.bench.judge.prompt import Prompt, Question, ask
from verl_uae.errors import DecodeError

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

    verdict: verdict.Verdict | None
    reason: str = ""
    """Why there is no verdict."""
    text: str = ""
    """What the judge wrote, where it wrote anything."""
    cached: bool = False
    """Whether the answer was there from before."""


@dataclass(frozen=True, slots=True)
class Outcome:
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
    outcomes: Mapping[str, Mapping[str, Outcome]]
    """By judge and `Item.key`."""
    requests: int
    """Sent now, further tries included."""
    cached: int
    """Answers found in the cache."""
    damaged: int
    """Lines of the cache that could not be read."""


def combine(answers: Sequence[Answered]) -> str:
    """The kind of outcome of two answers: first candidate as A, then as B."""
    if any(answer.verdict is None for answer in answers):
        return FAILED
    plain, swapped = (answer.verdict.choice for answer in answers if answer.verdict is not None)
    decided = {(verdict.A, verdict.B): WIN, (verdict.B, verdict.A): LOSS, (verdict.TIE, verdict.TIE): TIE}
    return decided.get((plain, swapped), INCONSISTENT)


def questions(contest: Contest, prompt: Prompt) -> Iterator[Question]:
    """All that every judge is asked; pairs of identical candidates are not asked about."""
    for item in contest.items:
        if not item.identical:
            yield from (ask(prompt, item, swapped) for swapped in ORDERS)


def count_requests(
    contest: Contest, judges: Sequence[Judge], prompt: Prompt, cache: AnswerCache, side: int = SIDE
) -> tuple[int, int]:
    """(requests without further tries, answers that are there already)."""
    keys = [request_key(judge, question.parts, side) for question in questions(contest, prompt) for judge in judges]
    known = sum(key in cache.answers for key in keys)
    return len(keys) - known, known


async def judge_contest(
    contest: Contest,
    judges: Sequence[Judge],
    prompt: Prompt,
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
    outcomes: dict[str, dict[str, Outcome]] = {judge.name: {} for judge in judges}
    total = len(judges) * len(contest.items)

    async def work(client: Client, items: Iterator[Item]) -> None:
        for item in items:
            outcomes[client.judge.name][item.key] = await _judge_item(client, item, prompt, cache, side)
            if on_progress is not None:
                on_progress(sum(map(len, outcomes.values())), total)

    async with AsyncExitStack() as stack:
        workers = []
        for judge in judges:
            client = await stack.enter_async_context(Client(judge, limits or Limits(), budget))
            # Shared by the workers of a judge: each takes the next picture.
            items = iter(contest.items)
            workers += [work(client, items) for _ in range(concurrency)]
        await asyncio.gather(*workers)
    in_order = {name: {item.key: found[item.key] for item in contest.items} for name, found in outcomes.items()}
    answers = [answer for found in in_order.values() for outcome in found.values() for answer in outcome.answers]
    cached = sum(answer.cached for answer in answers)
    return Judged(contest, tuple(judges), in_order, budget.sent, cached, cache.damaged)


async def _judge_item(client: Client, item: Item, prompt: Prompt, cache: AnswerCache, side: int) -> Outcome:
    if item.identical:
        return Outcome(TIE)
    answers = tuple([await _answer(client, ask(prompt, item, swapped), cache, side) for swapped in ORDERS])
    return Outcome(combine(answers), answers)


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
        about = {"judge": client.judge.name, "file": question.item.key, "swapped": question.swapped}
        cache.add(key, reply.answer, about)
        found = reply.answer
    return _parsed(found, question.nonce, cached)


def _parsed(answer: Mapping[str, object], nonce: str | None, cached: bool) -> Answered:
    text = ""
    try:
        text = verdict.answer_text(answer)
        return Answered(verdict.parse(answer, nonce), "", text, cached)
    except verdict.VerdictError as error:
        return Answered(None, str(error), text, cached)
