# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Requests to one judge: a deadline on each, a bounded number of further tries, and a count of what was sent."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from verl_uae.bench.judge.contest import Picture
from verl_uae.bench.judge.judges import Judge
from verl_uae.data.images import decode_image
from verl_uae.errors import ConfigError
from verl_uae.web import Retries, UnansweredError, WebClient, without_token

MAX_ANSWER = 4 * 2**20
"""Largest response read, bytes."""

#: Statuses that further tries may get over: request time-out, conflict, too early, too many, and faults of the server.
RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})

#: Statuses after which the judge is not asked again: no token, no credit, no such model or address.
FATAL = frozenset({401, 402, 404, 405})

SPENT = "not asked: the budget of requests is spent"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each request."""

    timeout: float = 120.0
    """From sending to the last byte, seconds; each try has it anew."""
    retries: int = 3
    """Further tries after a failed one."""
    backoff: float = 1.0
    """Wait before the first further try, seconds; doubled for each after it."""
    max_wait: float = 60.0
    """Longest wait, seconds; a server that asks for more has failed."""
    patience: int = 5
    """Questions in a row without an answer after which a judge is given up."""


class Budget:
    """Requests that may still be sent, further tries included.

    Args:
        count: None for no limit.
    """

    def __init__(self, count: int | None) -> None:
        self.left = math.inf if count is None else count
        self.sent = 0

    def take(self) -> bool:
        """Count a request; false if none is left."""
        if self.left < 1:
            return False
        self.left -= 1
        self.sent += 1
        return True


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question."""

    answer: dict[str, Any] | None
    """Body of a response that has choices."""
    reason: str = ""
    """Why there is none."""


class _NotAskedError(Exception):
    """Nothing was sent."""


def body(judge: Judge, parts: Sequence[str | Picture], side: int) -> dict[str, Any]:
    """The request as OpenAI's chat completions take it, pictures as PNG in data URLs.

    Args:
        judge: gives model and parameters.
        parts: texts and pictures, in order.
        side: longest side of a picture, pixels; larger ones are made smaller.

    Raises:
        DecodeError: a picture no longer decodes.
    """
    if len(parts) == 1 and isinstance(parts[0], str):
        content: Any = parts[0]
    else:
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_url(part, side)}}
            for part in parts
        ]
    return {**judge.settings(), "messages": [{"role": "user", "content": content}]}


@functools.lru_cache(maxsize=32)
def data_url(picture: Picture, side: int) -> str:
    """A picture as PNG in a URL (RFC 2397)."""
    image = decode_image(picture.path)
    # In proportion, and only ever smaller.
    image.thumbnail((side, side))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


class Client:
    """One judge; an asynchronous context manager.

    Args:
        judge: whom to ask.
        limits: see there.
        budget: shared by all judges.
        sleep: waits between tries.

    Raises:
        ConfigError: its token is not there, or the environment names a proxy that cannot be used.
    """

    def __init__(
        self,
        judge: Judge,
        limits: Limits,
        budget: Budget,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.judge, self.limits, self.budget = judge, limits, budget
        self.stopped = ""
        """Why the judge is not asked any more."""
        self._token = judge.token()
        self._failed = 0
        self._retries = Retries(
            RETRIED, limits.retries, limits.backoff, limits.max_wait, limits.max_wait, draw=float, sleep=sleep
        )
        try:
            # A proxy would carry what is for this machine, token included, into the network.
            self._web = WebClient(self._token, MAX_ANSWER, proxies=not judge.is_local)
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise ConfigError(f"judge {judge.name}", f"the proxy of the environment cannot be used: {error}") from error

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._web.aclose()

    async def ask(self, request: Mapping[str, Any]) -> Reply:
        """Send a request until it is answered or given up."""
        content = json.dumps(request).encode()
        reason = SPENT

        async def attempt() -> bytes:
            nonlocal reason
            if self.stopped or not self.budget.take():
                raise _NotAskedError(self.stopped or reason)
            try:
                return await self._web.send("POST", self.judge.url, content, timeout_s=self.limits.timeout)
            except UnansweredError as error:
                # It says more than that the budget is spent.
                reason = error.reason
                raise

        try:
            reply, fatal = self._reply(await self._retries.persist(attempt)), False
        except _NotAskedError as error:
            return Reply(None, str(error))
        except UnansweredError as error:
            reply, fatal = Reply(None, error.reason), error.code in FATAL
        self._note(reply, fatal)
        return reply

    def _note(self, reply: Reply, fatal: bool) -> None:
        self._failed = 0 if reply.answer is not None else self._failed + 1
        if fatal or self._failed >= self.limits.patience:
            what = "" if fatal else f"{self._failed} questions in a row went unanswered, the last: "
            self.stopped = self.stopped or f"not asked: the judge was given up, {what}{reply.reason}"

    def _reply(self, data: bytes) -> Reply:
        text = data.decode("utf-8", "replace")
        try:
            answer = _without(json.loads(text), self._token)
        except (ValueError, RecursionError):
            return Reply(None, "an answer that is not JSON")
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
            return Reply(None, self._web.reason(f"an answer without choices: {text}"))
        return Reply(answer)


def _without(value: Any, token: str | None) -> Any:
    """An answer without the token in any of its texts, should a server echo it."""
    if isinstance(value, str):
        return without_token(value, token)
    if isinstance(value, list):
        return [_without(entry, token) for entry in value]
    if isinstance(value, dict):
        return {without_token(name, token): _without(entry, token) for name, entry in value.items()}
    return value
