# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Asking: every judge about every picture, in both orders, and what the two answers come to.

A judge that prefers what it sees first would prefer either candidate. So a candidate wins a picture only if the judge
prefers it both as A and as B; two answers that disagree are a tie of their own kind (position swap as in Zheng et al.
2023, arXiv 2306.05685, section 3.4).

The verdict in an answer is parsed strictly: what is in doubt is no verdict. The answer has to end with one JSON object,
whose ``verdict`` is "A", "B" or "tie" and whose ``id`` is the nonce of the question, if that had one. Nothing before it
is looked at, so a caption that a judge quotes decides nothing; nor is reasoning that a server returns apart.

Raw answers are kept on disk, so that an interrupted run goes on and nothing is paid for twice: one JSON line per
answer, appended and never changed, under the digest of the whole request. Answers that cannot be parsed are kept too:
asking again until a judge says something else would bias the result.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from verl_uae.bench.judge.contest import Comparison, Content, Contest, JudgePrompt, Question, ask
from verl_uae.bench.judge.judges import Budget, Client, Judge, Limits, NoAnswerError, body
from verl_uae.errors import ConfigError, DecodeError
from verl_uae.text import unique_keys

A, B, NO_PREFERENCE = "A", "B", "tie"
CHOICES = (A, B, NO_PREFERENCE)

LOW, HIGH = 1.0, 10.0
"""Of scores."""

WIN, LOSS, TIE, INCONSISTENT, FAILED = "win", "loss", "tie", "inconsistent", "failed"
"""Of the first candidate."""

#: Of the letters chosen in both orders; other pairs are inconsistent. Nobody is asked about identical candidates.
_DECIDED: Mapping[tuple[str | None, ...], str] = {(A, B): WIN, (B, A): LOSS, (NO_PREFERENCE,) * 2: TIE, (): TIE}

ORDERS = (False, True)
"""Whether the candidates are swapped."""

SIDE = 1024
"""Longest side that pictures are sent with, pixels."""

#: Characters at the end of an answer that the verdict has to be in.
_TAIL = 4096

#: Told (pairs done, all pairs); a pair is a picture and a judge.
Progress = Callable[[int, int], None]


class VerdictError(ValueError):
    """An answer without a valid verdict; the text says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge decided, by the letters that it saw."""

    choice: str
    """One of `CHOICES`."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By letter and criterion, in [1, 10]; empty unless the same criteria are there for both."""


def answer_text(answer: Mapping[str, Any]) -> str:
    """The text of the first choice of a chat completion, without inline reasoning.

    Raises:
        VerdictError: it was cut off, filtered, refused, or is not there.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        finish, content, refusal = choice.get("finish_reason"), message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise VerdictError("the answer has no message") from error
    if refusal:
        raise VerdictError("refused")
    if finish == "length":
        raise VerdictError("cut off at the limit of tokens")
    if finish == "content_filter":
        raise VerdictError("stopped by a content filter")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str) or not content.strip():
        raise VerdictError("the answer is empty")
    # A server without a reasoning parser leaves the reasoning in the text.
    said = content.rpartition("</think>")[2]
    if "<think>" in said:
        raise VerdictError("the answer ends within its reasoning")
    return said


def parse_verdict(answer: Mapping[str, Any], nonce: str | None) -> Verdict:
    """The verdict of a chat completion.

    Args:
        answer: body of the response.
        nonce: what ``id`` has to be. None: no ``id`` is needed, and a last line A, B or tie will do.

    Raises:
        VerdictError: there is none.
    """
    text = answer_text(answer).strip()
    last = text.rpartition("\n")[2].strip()
    if nonce is None and last in CHOICES:
        return Verdict(last)
    found = _last_object(text)
    if nonce is not None and found.get("id") != nonce:
        raise VerdictError("the verdict does not name its question")
    choice = found.get("verdict")
    if choice not in CHOICES:
        raise VerdictError("the verdict is none of A, B, tie")
    return Verdict(choice, _scores(found.get("scores")))


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object that the text ends with; a code fence may close after it."""
    text = text.removesuffix("```").rstrip()[-_TAIL:]
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    start = text.find("{")
    while text.endswith("}") and start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = -1
        if end == len(text):
            assert isinstance(value, dict)
            return value
        start = text.find("{", start + 1)
    raise VerdictError("the answer does not end with a verdict")


def _scores(value: Any) -> dict[str, dict[str, float]]:
    """Valid scores of both candidates on the same criteria; else none, which costs the scores and not the verdict."""
    given: list[Any] = [value.get(letter) if isinstance(value, dict) else None for letter in (A, B)]
    if not all(isinstance(scores, dict) for scores in given) or given[0].keys() != given[1].keys():
        return {}
    for score in (score for scores in given for score in scores.values()):
        if isinstance(score, bool) or not isinstance(score, int | float) or not LOW <= score <= HIGH:
            return {}
    return {
        letter: {name: float(score) for name, score in scores.items()}
        for letter, scores in zip((A, B), given, strict=True)
    }


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

    answers: tuple[Answered, ...] = ()
    """First with the first candidate as A, then with the second; empty for identical candidates."""

    @property
    def choices(self) -> tuple[str | None, ...]:
        """Letters that the judge chose, by order."""
        return tuple(None if answer.verdict is None else answer.verdict.choice for answer in self.answers)

    @property
    def kind(self) -> str:
        """What the answers come to: `WIN`, `LOSS`, `TIE`, `INCONSISTENT` or `FAILED`."""
        return FAILED if None in self.choices else _DECIDED.get(self.choices, INCONSISTENT)

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


def request_key(judge: Judge, parts: Sequence[Content], side: int) -> str:
    """SHA-256 of everything that an answer depends on; pictures enter by the digest of their pixels.

    The name of the judge does not count; ``side`` is the longest of pictures as sent, pixels.
    """
    content = [part if isinstance(part, str) else {"picture": part.digest, "side": side} for part in parts]
    request = {"url": judge.url, "settings": judge.settings(), "content": content}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by `request_key` in a file of JSON lines, held against other processes until the context ends.

    Raises:
        ConfigError: the file cannot be opened, or another process writes to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.damaged = 0
        """Lines that are no entry, such as one that a kill cut short."""
        try:
            self._file = open(path, "a+b")  # noqa: SIM115  closed on exit
        except OSError as error:
            raise ConfigError("answers", f"cannot open {os.fspath(path)}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError("answers", f"{os.fspath(path)} is in use by another process") from error
        self._file.seek(0)
        line = b"\n"
        for line in self._file:
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
                if not isinstance(key, str) or not isinstance(answer, dict):
                    raise ValueError("no entry")
                self.answers.setdefault(key, answer)
            except (ValueError, KeyError, TypeError, RecursionError):
                self.damaged += 1
        if not line.endswith(b"\n"):
            # Cut short by a kill: the next entry starts a line of its own.
            self._file.write(b"\n")

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *failed: object) -> None:
        self._file.close()

    def add(self, key: str, answer: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Append an answer and see it onto the disk; ``about`` is for the reader of the file."""
        self._file.write((json.dumps({"key": key, **about, "answer": answer}) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.answers.setdefault(key, answer)


def count_requests(
    contest: Contest, judges: Sequence[Judge], prompt: JudgePrompt, cache: AnswerCache, side: int = SIDE
) -> tuple[int, int]:
    """(requests without further tries, answers that are there already)."""
    asked = [
        ask(prompt, comparison, swapped)
        for comparison in contest.comparisons
        if not comparison.identical
        for swapped in ORDERS
    ]
    known = [request_key(judge, question.parts, side) in cache.answers for question in asked for judge in judges]
    return known.count(False), known.count(True)


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
    on_progress: Progress = lambda done, count: None,
) -> Judged:
    """Ask all judges, each about one picture after the other, both orders of a picture in a row.

    What fails is an outcome and never an error: an answer that is missing or does not parse, a judge that is given up,
    a budget that is spent.

    Args:
        cache: open; answers in it are not asked for again, new ones are added.
        max_requests: sent at most, by all judges together and with further tries.
        concurrency: requests at a time per judge.
        side: longest side of pictures, pixels.
        on_progress: called after each picture and judge.

    Raises:
        ConfigError: the token of a judge is not there.
    """
    budget = Budget() if max_requests is None else Budget(max_requests)
    outcomes: dict[str, dict[str, JudgeOutcome]] = {judge.name: {} for judge in judges}
    total = len(judges) * len(contest.comparisons)

    async def work(client: Client, comparisons: Iterator[Comparison]) -> None:
        for comparison in comparisons:
            asked = [] if comparison.identical else [ask(prompt, comparison, swapped) for swapped in ORDERS]
            answers = tuple([await _answer(client, question, cache, side) for question in asked])
            outcomes[client.judge.name][comparison.key] = JudgeOutcome(answers)
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
    everything = [outcome for found in in_order.values() for outcome in found.values()]
    cached = sum(answer.cached for outcome in everything for answer in outcome.answers)
    return Judged(contest, tuple(judges), in_order, budget.sent, cached, cache.damaged)


async def _answer(client: Client, question: Question, cache: AnswerCache, side: int) -> Answered:
    key = request_key(client.judge, question.parts, side)
    found = cache.answers.get(key)
    cached = found is not None
    if found is None:
        try:
            found = await client.ask(body(client.judge, question.parts, side))
        except (DecodeError, NoAnswerError) as error:
            return Answered(None, str(error))
        about = {"judge": client.judge.name, "file": question.comparison.key, "swapped": question.swapped}
        cache.add(key, found, about)
    text = ""
    try:
        text = answer_text(found)
        return Answered(parse_verdict(found, question.nonce), "", text, cached)
    except VerdictError as error:
        return Answered(None, str(error), text, cached)
