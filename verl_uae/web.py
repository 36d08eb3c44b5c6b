# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Asking a server over HTTP that may be slow, down, lying or hostile.

What is read is bounded, every wait has an end, nothing is followed or unpacked, and a bearer token (RFC 6750) that the
server echoes is taken out of every text. The deadlines here are of a whole exchange: the timeouts of HTTP libraries
count from the last byte, so a server that sends one byte a second would never be late.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import enum
import functools
import http.client
import ipaddress
import itertools
import logging
import math
import operator
import random
import re
import ssl
import string
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from typing import TypeVar

import httpx

T = TypeVar("T")

#: How much of what a server says is kept as a reason, characters, and how much is read for it, bytes.
REASON, EXCERPT = 300, 3000

#: Shortest part of a token that is taken out of a text, characters.
MIN_ECHO = 8

#: How often escapes are undone: a URL in a URL, JSON in JSON in a log.
_ESCAPES = 3

#: One character, escaped, in lower case: %2b, =2b, \x2b, 0x2b, \u002b, &#x2b;, &#43;, \053, \/.
_ESCAPED = re.compile(
    r"(?:[%=]|\\x|0x|\\u00)(?P<code>[0-7][0-9a-f])|&#x0*(?P<hexadecimal>[0-7][0-9a-f]);|&#0*(?P<decimal>[0-9]{2,3});"
    r"|\\(?P<octal>[01][0-7]{2})|\\(?P<itself>[^a-z0-9])"
)
_BASES = {"code": 16, "hexadecimal": 16, "decimal": 10, "octal": 8}

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_JITTER = random.Random()


class Fault(enum.Enum):
    """Why there is no answer."""

    TIMEOUT = "timeout"
    """Not in time."""
    ERROR = "error"
    """No connection, a broken one, or a refusal."""
    INVALID = "invalid"
    """What came is no answer."""


class UnansweredError(Exception):
    """A request brought no answer that could be read.

    Args:
        fault: why.
        reason: the same in words, on one line and without the token.
        code: HTTP status, None where none came.
        asked_s: seconds that the server asks to wait, None where it does not ask.
    """

    def __init__(self, fault: Fault, reason: str, code: int | None = None, asked_s: float | None = None) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason
        self.code = code
        self.asked_s = asked_s

    @property
    def alive(self) -> bool:
        """Whether the server itself has spoken: a proxy may say 502 for one that is gone, and 503 without a time."""
        return self.code is not None and (self.code < 500 or (self.code == 503 and self.asked_s is not None))

    @property
    def final(self) -> bool:
        """Whether a server has said no for good, so that waiting does not help."""
        return self.fault is Fault.INVALID or (self.code is not None and self.code < 500 and self.code != 429)


def any_below(bound: float) -> float:
    """A wait from 0 to its bound ("full jitter"), so that many clients do not come back at once."""
    return _JITTER.uniform(0.0, bound)


@dataclass(frozen=True, slots=True)
class Retries:
    """When a request is tried again."""

    statuses: Container[int]
    """HTTP statuses after which another try may help. It may always where no status came in time."""
    count: int
    """Further tries after a failed one."""
    first_s: float
    """Bound of the wait before the first of them, seconds; doubled for each after it."""
    longest_s: float
    """What doubling ends at, seconds."""
    most_asked_s: float = math.inf
    """A server that asks for a longer wait has failed, seconds."""
    draw: Callable[[float], float] = any_below
    """The wait, from its bound."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def persist(self, attempt: Callable[[], Awaitable[T]], deadline: float = math.inf) -> T:
        """Try until there is an answer.

        What a server asks for with ``Retry-After`` is waited for too. Where there is a deadline, tries for which it
        asks do not count: it is well and busy, or loading, and the deadline bounds how often it is asked.

        Args:
            attempt: one try.
            deadline: on ``clock``; no try begins after it.

        Raises:
            UnansweredError: that of the last try that ended; one that is cancelled at the deadline tells less.
        """
        failed = 0
        last: UnansweredError | None = None
        while True:
            try:
                return await attempt()
            except asyncio.CancelledError:
                if last is None or self.clock() < deadline:
                    raise
                raise last from None
            except UnansweredError as error:
                last = error
            asked_s = last.asked_s or 0.0
            counts = not (asked_s and last.alive and deadline < math.inf)
            helps = last.fault is not Fault.INVALID and (last.code is None or last.code in self.statuses)
            if not helps or (counts and failed >= self.count):
                raise last
            wait_s = asked_s + self.draw(min(self.first_s * 2**failed, self.longest_s))
            if asked_s > self.most_asked_s or self.clock() + wait_s >= deadline:
                last.reason += f"; asks to wait {asked_s:.0f} s" if asked_s else ""
                raise last
            failed += counts
            await self.sleep(wait_s)


class WebClient:
    """Sends requests; used in one event loop.

    Args:
        token: bearer token of every request, or None.
        most_bytes: longest answer that is read.
        kind: content type of an answer; None takes any.
        connect_s: longest time to open a connection, seconds; None leaves that to the deadline.
        ca_file: certificates to trust instead of the public ones.
        proxies: whether to go through the proxies of the environment, which see the address, and over http everything.

    Raises:
        OSError: ``ca_file`` cannot be read or holds no certificates.
        ValueError, ImportError, httpx.InvalidURL: a proxy of the environment cannot be used.
    """

    def __init__(
        self,
        token: str | None,
        most_bytes: int,
        *,
        kind: str | None = None,
        connect_s: float | None = None,
        ca_file: str | None = None,
        proxies: bool = False,
    ) -> None:
        _keep_phrases_out_of_logs()
        self._token = token
        self._most_bytes = most_bytes
        self._kind = kind
        headers = {"Accept": kind or "*/*", "Accept-Encoding": "identity", "User-Agent": "verl-uae"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=connect_s),
            limits=httpx.Limits(max_connections=None),
            # It would carry pictures and captions elsewhere.
            follow_redirects=False,
            trust_env=proxies,
            verify=True if ca_file is None else ssl.create_default_context(cafile=ca_file),
        )

    async def send(
        self,
        method: str,
        url: str,
        content: bytes | None = None,
        *,
        kind: str = "application/json",
        timeout_s: float | None = None,
    ) -> bytes:
        """One request and the whole body of its answer, of status 200.

        Args:
            method: such as ``"POST"``.
            url: of one server.
            content: body.
            kind: content type of the body.
            timeout_s: seconds from sending to the last byte; None where the caller cancels.

        Raises:
            UnansweredError: there is none.
        """
        headers = {} if content is None else {"Content-Type": kind}
        try:
            return await asyncio.wait_for(self._exchange(method, url, content, headers), timeout_s)
        except asyncio.TimeoutError as error:
            raise UnansweredError(Fault.TIMEOUT, f"no answer within {timeout_s:g} s") from error
        except httpx.ConnectTimeout as error:
            raise UnansweredError(Fault.TIMEOUT, "no connection in time") from error
        except httpx.HTTPError as error:
            raise UnansweredError(Fault.ERROR, self.reason(f"{type(error).__name__}: {error}").rstrip(": ")) from error

    def clean(self, text: str) -> str:
        """A text that a server may have written; see :func:`scrub`."""
        return scrub(text, self._token)

    def reason(self, text: str) -> str:
        """The beginning of a text that a server may have written, clean."""
        return self.clean(text[:EXCERPT])[:REASON]

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._http.aclose()

    async def _exchange(self, method: str, url: str, content: bytes | None, headers: dict[str, str]) -> bytes:
        async with self._http.stream(method, url, content=content, headers=headers) as response:
            code = response.status_code
            if code >= 400:
                said = "" if _packed(response) else (await _read(response, EXCERPT)).decode("utf-8", "replace")
                asked_s = retry_after(response.headers.get("Retry-After"))
                raise UnansweredError(Fault.ERROR, self.reason(f"HTTP {code}: {said}").rstrip(": "), code, asked_s)
            problem = self._problem(response)
            if problem is None:
                body = await _read(response, self._most_bytes + 1)
                if len(body) <= self._most_bytes:
                    return body
                problem = f"answered with more than {self._most_bytes} bytes"
            raise UnansweredError(Fault.INVALID, problem, code)

    def _problem(self, response: httpx.Response) -> str | None:
        """Why the head of an answer is that of none."""
        headers = response.headers
        if response.status_code != 200:
            return f"HTTP {response.status_code}: only 200 is an answer, redirects are not followed"
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if self._kind not in (None, kind):
            return f"answered with {self.clean(kind)[:60] or 'no content type'}, not {self._kind}"
        if _packed(response):
            return "answered compressed, which was not asked for"
        length = headers.get("Content-Length", "0")
        if not (length.isdecimal() and len(length) < 20 and int(length) <= self._most_bytes):
            return f"answered with more than {self._most_bytes} bytes"
        return None


def _packed(response: httpx.Response) -> bool:
    """Whether a body would have to be unpacked; a few kilobytes may be gigabytes then."""
    return bool(response.headers.get("Content-Encoding", "identity").lower() != "identity")


async def _read(response: httpx.Response, most_bytes: int) -> bytes:
    """The beginning of a body, as sent."""
    found = bytearray()
    async for piece in response.aiter_raw():
        found += piece
        if len(found) >= most_bytes:
            break
    return bytes(found[:most_bytes])


def retry_after(header: str | None) -> float | None:
    """Seconds a ``Retry-After`` header asks for (RFC 9110, 10.2.3: seconds or a date), 0 where it says neither; None
    without one."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------- tokens in texts


def scrub(text: str, token: str | None) -> str:
    """A text from elsewhere, fit for logs and records: one line without control characters, and without the token."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return without_token(" ".join(line.split()), token)


def without_token(text: str, token: str | None) -> str:
    """The text without the token, should somebody have echoed it.

    Found are the token itself, in base64 (any text before it), in hexadecimal or decimal numbers, in letters of the
    other case; each of these also with other characters in between, as where lines are broken or bytes are listed, with
    characters escaped as in URLs, JSON, HTML, Python or C, also thrice over; and every part of at least
    :data:`MIN_ECHO` characters, as where a text is cut.
    """
    if token is None:
        return text
    # Each character with the part of the text it stands for. Not lower(), which makes two of one in some languages.
    line = [(character, at, at + 1) for at, character in enumerate(text.translate(_LOWER))]
    hidden = [False] * len(text)
    for _ in range(_ESCAPES + 1):
        _hide(line, _parts(token), hidden)
        _hide([place for place in line if place[0].isalnum()], _parts(token), hidden)
        shorter = _unescaped(line)
        if len(shorter) == len(line):
            break
        line = shorter
    runs = itertools.groupby(zip(hidden, text, strict=True), key=operator.itemgetter(0))
    return "".join("***" if secret else "".join(character for _, character in run) for secret, run in runs)


@functools.cache
def _keep_phrases_out_of_logs() -> None:
    """httpx logs every answer at level INFO with the words behind its status, which the server chooses."""
    logging.getLogger("httpx").addFilter(_without_phrase)


def _without_phrase(record: logging.LogRecord) -> bool:
    arguments = record.args if isinstance(record.args, tuple) else ()
    # Method, address, version, status, words.
    if len(arguments) == 5 and isinstance(arguments[3], int):
        record.args = (*arguments[:4], http.client.responses.get(arguments[3], ""))
    return True


@functools.lru_cache(maxsize=8)
def _parts(token: str) -> frozenset[str]:
    """All that is looked for: ``MIN_ECHO`` characters in a row of any form of the token, with and without the
    characters between letters and digits."""
    data = token.encode()
    forms = {token, data.hex(), "".join(map(str, data))}
    # Base64 takes three bytes at a time: these are the three ways in which something may stand before.
    for prefix in (b"", b"Bearer ", b":", b"x:"):
        forms.add(base64.b64encode(prefix + data).decode().rstrip("="))
        forms.add(base64.urlsafe_b64encode(prefix + data).decode().rstrip("="))
    forms |= {"".join(filter(str.isalnum, form)) for form in forms}
    lowered = (form.translate(_LOWER) for form in forms)
    return frozenset(form[at : at + MIN_ECHO] for form in lowered for at in range(len(form) - MIN_ECHO + 1))


_Line = list[tuple[str, int, int]]


def _hide(line: _Line, parts: frozenset[str], hidden: list[bool]) -> None:
    """Mark what of the original text is a part of the token."""
    characters = "".join(place[0] for place in line)
    for at in range(len(line) - MIN_ECHO + 1):
        if characters[at : at + MIN_ECHO] in parts:
            first, last = line[at][1], line[at + MIN_ECHO - 1][2]
            hidden[first:last] = [True] * (last - first)


def _unescaped(line: _Line) -> _Line:
    """The line with each escape as the character it stands for, in lower case."""
    found: _Line = []
    done = 0
    for escape in _ESCAPED.finditer("".join(place[0] for place in line)):
        digits, kind = next((text, name) for name, text in escape.groupdict().items() if text)
        character = chr(int(digits, _BASES[kind])).translate(_LOWER) if kind in _BASES else digits
        found += [*line[done : escape.start()], (character, line[escape.start()][1], line[escape.end() - 1][2])]
        done = escape.end()
    return found + line[done:]
