# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import math
import re
import time
import urllib.parse
from collections.abc import Sequence

import pytest

from tests.reward.remote.faults import FaultServer, reply
from verl_uae.web import (
    EXCERPT,
    REASON,
    Fault,
    Retries,
    UnansweredError,
    WebClient,
    any_below,
    is_loopback,
    retry_after,
    scrub,
    without_token,
)

TOKEN = "0123456789abcdef"

# ---------------------------------------------------------------- waiting


class Clock:
    """Time that passes in waits alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(round(seconds, 6))
        self.now += seconds


def persist(failures: Sequence[UnansweredError], deadline_s: float = math.inf, **changes: float) -> tuple[str, Clock]:
    """The answer, or why there is none, of a server that fails as told and is well afterwards; and the waits."""
    clock, coming = Clock(), list(failures)
    settings = {"count": 3, "first_s": 1.0, "longest_s": 5.0, **changes}
    retries = Retries(frozenset({503}), **settings, draw=float, clock=clock, sleep=clock.sleep)

    async def attempt() -> str:
        if coming:
            raise coming.pop(0)
        return "well"

    try:
        return asyncio.run(retries.persist(attempt, clock.now + deadline_s)), clock
    except UnansweredError as error:
        return error.reason, clock


def refused(code: int, asked_s: float | None = None) -> UnansweredError:
    return UnansweredError(Fault.ERROR, f"HTTP {code}", code, asked_s)


def test_waits_double_up_to_the_longest_and_tries_are_counted() -> None:
    answer, clock = persist([refused(503) for _ in range(4)], count=4)
    assert answer == "well" and clock.naps == [1.0, 2.0, 4.0, 5.0]
    answer, clock = persist([refused(503) for _ in range(4)])
    assert answer == "HTTP 503" and clock.naps == [1.0, 2.0, 4.0]
    assert persist([refused(503)], count=0)[1].naps == []


def test_a_wait_lies_anywhere_below_its_bound() -> None:
    drawn = [any_below(8.0) for _ in range(200)]
    assert 0.0 <= min(drawn) < 1.0 and 7.0 < max(drawn) <= 8.0


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        (refused(503), True),
        (refused(500), False),
        (refused(404), False),
        (UnansweredError(Fault.ERROR, "no connection"), True),
        (UnansweredError(Fault.TIMEOUT, "late"), True),
        (UnansweredError(Fault.INVALID, "a lie", 200), False),
        (UnansweredError(Fault.INVALID, "a redirect", 302), False),
    ],
    ids=str,
)
def test_what_another_try_may_help(failure: UnansweredError, again: bool) -> None:
    assert persist([failure])[0] == ("well" if again else failure.reason)


def test_what_a_server_asks_for_is_waited_for_and_counts_where_nothing_else_ends_it() -> None:
    busy = [refused(503, 10.0) for _ in range(5)]
    answer, clock = persist(busy, deadline_s=1000.0, count=0)
    assert answer == "well" and clock.naps == [11.0] * 5
    answer, clock = persist(busy, count=1)
    assert answer == "HTTP 503" and clock.naps == [11.0]
    # A proxy that says so of a server it does not reach does not know.
    answer, _ = persist([UnansweredError(Fault.ERROR, "HTTP 502", 502, 10.0)] * 2, deadline_s=1000.0)
    assert answer == "HTTP 502"


def test_a_wait_that_is_too_long_is_not_begun() -> None:
    answer, clock = persist([refused(503, 3600.0)], most_asked_s=60.0)
    assert answer == "HTTP 503; asks to wait 3600 s" and clock.naps == []
    answer, clock = persist([refused(503, 10.0)] * 9, deadline_s=25.0)
    assert answer.startswith("HTTP 503; asks") and clock.naps == [11.0, 11.0]
    answer, clock = persist([refused(503)] * 9, deadline_s=2.5)
    assert answer == "HTTP 503" and clock.naps == [1.0]


def test_retry_after() -> None:
    assert retry_after(None) is None and retry_after("7") == 7.0 and retry_after("2.5") == 2.5
    assert 50 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    nonsense = ("soon", "-5", "nan", "inf", "", "9" * 400, "Wed, 21 Oct 2015 07:28:00 GMT")
    assert [retry_after(text) for text in nonsense] == [0.0] * len(nonsense)


# ---------------------------------------------------------------- one exchange


def send(
    server: FaultServer, timeout_s: float = 20.0, most_bytes: int = 2**20, **settings: object
) -> bytes | UnansweredError:
    async def run() -> bytes | UnansweredError:
        client = WebClient(TOKEN, most_bytes, **settings)
        try:
            return await client.send("POST", f"{server.url}/score", b"{}", timeout_s=timeout_s)
        except UnansweredError as error:
            return error
        finally:
            await client.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "header", "alive", "final"),
    [
        ("503 Service Unavailable", "Retry-After: 1", True, False),
        ("503 Service Unavailable", "X-None: 1", False, False),
        ("429 Too Many Requests", "X-None: 1", True, False),
        ("502 Bad Gateway", "Retry-After: 1", False, False),
        ("500 Internal Server Error", "X-None: 1", False, False),
        ("404 Not Found", "X-None: 1", True, True),
        ("307 Temporary Redirect", "Location: http://127.0.0.1:1/", True, True),
        ("204 No Content", "X-None: 1", True, True),
    ],
)
def test_what_a_status_means(status: str, header: str, alive: bool, final: bool) -> None:
    with FaultServer(reply("said\n  this" if status[0] != "2" else "", status, "text/plain", header)) as server:
        error = send(server)
    assert isinstance(error, UnansweredError) and (error.alive, error.final) == (alive, final)
    assert error.fault is (Fault.ERROR if error.code >= 400 else Fault.INVALID)
    assert error.reason.startswith(f"HTTP {status[:3]}: {'said this' if error.code >= 400 else 'only 200'}")
    assert error.asked_s == (1.0 if "Retry" in header else None)


def test_the_beginning_of_a_refusal_is_kept_without_what_is_packed_or_secret() -> None:
    with FaultServer(reply(f"{TOKEN} " + "word " * 2 * EXCERPT, "400 Bad Request")) as server:
        error = send(server)
    assert error.reason.startswith("HTTP 400: *** word") and len(error.reason) == REASON
    with FaultServer(reply(b"\x1f\x8b packed", "400 Bad Request", "x/y", "Content-Encoding: gzip")) as server:
        assert send(server).reason == "HTTP 400"


def test_an_answer_is_read_whole_up_to_its_limit() -> None:
    for size, kind in ((1000, bytes), (1001, UnansweredError)):
        with FaultServer(reply(b" " * size)) as server:
            assert isinstance(send(server, most_bytes=1000), kind)
    with FaultServer(reply("{}", kind="text/html")) as server:
        assert send(server) == b"{}"
        assert send(server, kind="x/y").reason == "answered with text/html, not x/y"


@pytest.mark.parametrize("behaviour", ["hang", "drip", "drip_head"])
def test_the_deadline_is_on_the_whole_exchange(behaviour: str) -> None:
    with FaultServer() as server:
        server.behaviours = (getattr(server, behaviour),)
        error = send(server, timeout_s=0.3)
    assert (error.fault, error.reason) == (Fault.TIMEOUT, "no answer within 0.3 s")


def test_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example.org")))


# ---------------------------------------------------------------- tokens in texts


def test_scrub() -> None:
    assert scrub(f"a {TOKEN} b {TOKEN}", TOKEN) == "a *** b ***"
    assert scrub("a", None) == "a"


#: With all that a token may hold beside letters and digits, never eight of those in a row.
ODD = "ab+cd/EF-0123._9~xyz/Q=="


def escaped(pattern: str, token: str) -> str:
    return "".join(pattern.format(ord(character)) for character in token)


#: As frameworks print what they were sent.
ECHOES = {
    "PHP's JSON": lambda token: json.dumps(token).replace("/", "\\/"),
    "JSON in JSON": lambda token: json.dumps(json.dumps({"authorization": escaped("\\u{:04x}", token)})),
    "Go's HTML": lambda token: token.replace("+", "&#43;").replace("/", "&#x2F;"),
    "HTML": lambda token: escaped("&#{};", token),
    "URL": lambda token: urllib.parse.quote(token, safe=""),
    "URL, every character": lambda token: escaped("%{:02X}", token),
    "URL in a URL": lambda token: urllib.parse.quote(escaped("%{:02x}", token), safe=""),
    "quoted-printable": lambda token: escaped("={:02X}", token),
    "Python": lambda token: escaped("\\x{:02x}", token),
    "C": lambda token: escaped("\\{:03o}", token),
    "C, bytes": lambda token: escaped("0x{:02x}, ", token),
    "Go, bytes": lambda token: str(list(token.encode())),
    "Go, bytes without commas": lambda token: str(list(token.encode())).replace(",", ""),
    "a dump": lambda token: token.encode().hex(" "),
    "a fingerprint": lambda token: token.encode().hex(":").upper(),
    "repr of headers": lambda token: repr([(b"authorization", f"Bearer {token}".encode())]),
    "base64 of all headers": lambda token: base64.b64encode(f"Authorization: Bearer {token}\r\n".encode()).decode(),
    "basic, a user of another length": lambda token: base64.b64encode(f"me:{token}".encode()).decode(),
    "base64 of a URL": lambda token: base64.urlsafe_b64encode(f"http://u:{token}@host/".encode()).decode(),
    "base64, broken into lines": lambda token: "\r\n".join(
        re.findall(".{1,7}", base64.b64encode(token.encode()).decode())
    ),
    "a word in every cell": lambda token: " | ".join(token),
    "invisible characters": lambda token: "\u200b".join(token),
    "wrapped": lambda token: "\n".join(re.findall(".{1,4}", token)),
    "as it is": lambda token: token,
}


@pytest.mark.parametrize("token", ["0123456789abcdef0123456789abcdef", "qN3tYwZ8rLx0PmV2sKdT", ODD])
@pytest.mark.parametrize("how", ECHOES)
def test_a_token_is_found_however_it_was_written(how: str, token: str) -> None:
    """What is left is too little to say what the token was."""
    echo = ECHOES[how](token)
    found = scrub(f"the server said <{echo}> and more", token)
    assert found.startswith("the server said <") and found.endswith("> and more")
    left = found.removeprefix("the server said <").removesuffix("> and more")
    assert len(re.sub("[^A-Za-z0-9]", "", left.replace("Authorization: Bearer", "").replace("authorization", ""))) < 24
    assert "***" in left and len(left) < len(scrub(echo, None)) / 2 + 40
    shown = "".join(filter(str.isalnum, left))
    plain = "".join(filter(str.isalnum, token))
    assert not [at for at in range(len(plain) - 7) if plain[at : at + 8] in shown]


def test_many_words_take_no_longer_than_their_number() -> None:
    text = "a long answer with %41 and \\n in it " * 20_000
    started = time.process_time()
    assert without_token(text, TOKEN) == text
    assert time.process_time() - started < 10.0


@pytest.mark.parametrize(
    "echo",
    [
        f"Bearer {TOKEN}",
        TOKEN.upper(),
        TOKEN[:-3],
        TOKEN[3:],
        base64.b64encode(TOKEN.encode()).decode(),
        base64.b64encode(f"Bearer {TOKEN}".encode()).decode(),
        TOKEN.encode().hex(),
        f"\x1b[31m{TOKEN}\x1b[0m",
    ],
)
def test_no_form_of_the_token_is_left(echo: str) -> None:
    found = scrub(f"the server said {echo}\r\nand more", TOKEN)
    assert found.startswith("the server said ") and found.endswith(" and more") and found.isprintable()
    assert "***" in found
    for length in (8, 12):
        parts = [echo[start : start + length] for start in range(len(echo) - length + 1)]
        assert not [part for part in parts if part in found and "[" not in part and "Bearer" not in part]


def test_texts_without_the_token_stay_as_they_are() -> None:
    assert without_token("HTTP 500:  out of\nmemory", TOKEN) == "HTTP 500:  out of\nmemory"
    assert scrub("a\n b\x00c", TOKEN) == scrub("a\n b\x00c", None) == "a b c"
