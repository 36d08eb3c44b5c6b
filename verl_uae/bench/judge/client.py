# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Requests to one judge: a deadline on each, a bounded number of further tries, and a count of what was sent."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import functools
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from verl_uae.bench.judge.contest import Picture
from verl_uae.bench.judge.judges import Judge
from verl_uae.data.images import decode_image
from verl_uae.errors import ConfigError
from verl_uae.reward.remote.auth import keep_phrases_out_of_logs, scrub, without_token

MAX_ANSWER = 4 * 2**20
"""Largest response read, bytes."""

#: Statuses that further tries may get over, besides all from 500 on: request time-out, conflict, too early, too many.
RETRIED = frozenset({408, 409, 425, 429})

#: Statuses after which the judge is not asked again: no token, no credit, no such model or address.
FATAL = frozenset({401, 402, 404, 405})

SPENT = "not asked: the budget of requests is spent"

_REASON = 300
"""Longest reason kept of an error, characters."""


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


@dataclass(frozen=True, slots=True)
class _Try:
    reply: Reply
    again: bool = False
    wait: float | None = None
    """Seconds that the server asks for."""
    fatal: bool = False


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

    Raises:
        ConfigError: its token is not there, or the environment names a proxy that cannot be used.
    """

    def __init__(self, judge: Judge, limits: Limits, budget: Budget) -> None:
        self.judge, self.limits, self.budget = judge, limits, budget
        self.stopped = ""
        """Why the judge is not asked any more."""
        self._token = judge.token()
        self._failed = 0
        self._http = _open(judge, self._token)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, request: Mapping[str, Any]) -> Reply:
        """Send a request until it is answered or given up."""
        content = json.dumps(request).encode()
        last = Reply(None, SPENT)
        for attempt in range(self.limits.retries + 1):
            if self.stopped:
                return Reply(None, self.stopped)
            if not self.budget.take():
                # The reason of an earlier try says more than the budget does.
                return last
            tried = await self._try(content)
            last = tried.reply
            wait = self.limits.backoff * 2**attempt if tried.wait is None else tried.wait
            if not tried.again or attempt == self.limits.retries:
                break
            if wait > self.limits.max_wait:
                last = Reply(None, f"{last.reason}; asks to wait {wait:.0f} s")
                break
            await asyncio.sleep(wait)
        self._note(tried, last)
        return last

    def _note(self, tried: _Try, last: Reply) -> None:
        self._failed = 0 if last.answer is not None else self._failed + 1
        if tried.fatal or self._failed >= self.limits.patience:
            what = "" if tried.fatal else f"{self._failed} questions in a row went unanswered, the last: "
            self.stopped = self.stopped or f"not asked: the judge was given up, {what}{last.reason}"

    async def _try(self, content: bytes) -> _Try:
        try:
            status, headers, data = await asyncio.wait_for(self._exchange(content), self.limits.timeout)
        except asyncio.TimeoutError:
            return _Try(Reply(None, f"no answer within {self.limits.timeout:g} s"), again=True)
        except httpx.HTTPError as error:
            return _Try(Reply(None, self._text(f"{type(error).__name__}: {error}").rstrip(": ")), again=True)
        if headers.get("content-encoding", "identity").lower() != "identity":
            return _Try(Reply(None, f"HTTP {status}, compressed, which was not asked for"))
        text = data.decode("utf-8", "replace")
        if status == 200:
            return _Try(self._reply(text, len(data)))
        again = status in RETRIED or status >= 500
        reason = self._text(f"HTTP {status}: {text}")
        return _Try(Reply(None, reason), again, retry_after(headers.get("retry-after")), status in FATAL)

    async def _exchange(self, content: bytes) -> tuple[int, httpx.Headers, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self._http.stream("POST", self.judge.url, content=content, headers=headers) as response:
            data = bytearray()
            # As sent: a few kilobytes may unpack to gigabytes, and nothing packed was asked for.
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > MAX_ANSWER:
                    break
            return response.status_code, response.headers, bytes(data)

    def _reply(self, text: str, size: int) -> Reply:
        if size > MAX_ANSWER:
            return Reply(None, f"an answer of more than {MAX_ANSWER} bytes")
        try:
            answer = _without(json.loads(text), self._token)
        except (ValueError, RecursionError):
            return Reply(None, "an answer that is not JSON")
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
            return Reply(None, self._text(f"an answer without choices: {text}"))
        return Reply(answer)

    def _text(self, reason: str) -> str:
        # Cut before too: an answer may have megabytes.
        return scrub(reason[: 10 * _REASON], self._token)[:_REASON]


def _without(value: Any, token: str | None) -> Any:
    """An answer without the token in any of its texts, should a server echo it."""
    if isinstance(value, str):
        return without_token(value, token)
    if isinstance(value, list):
        return [_without(entry, token) for entry in value]
    if isinstance(value, dict):
        return {without_token(name, token): _without(entry, token) for name, entry in value.items()}
    return value


def _open(judge: Judge, token: str | None) -> httpx.AsyncClient:
    headers = {"Accept-Encoding": "identity"}
    keep_phrases_out_of_logs()
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        return httpx.AsyncClient(
            headers=headers,
            # The deadline of a request bounds it as a whole; httpx bounds single reads, so a slow drip would pass.
            timeout=None,
            # They would carry pictures and captions elsewhere.
            follow_redirects=False,
            # A proxy would carry what is for this machine, token included, into the network.
            trust_env=not judge.is_local,
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ConfigError(f"judge {judge.name}", f"the proxy of the environment cannot be used: {error}") from error


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3), number or date; None if it says neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
