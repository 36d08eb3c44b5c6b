# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""HTTP to reward servers: one deadline for everything, bounded retries, and those that answer before those that do not.

All waiting happens in an event loop of its own, in a daemon thread. An event loop is what makes the deadline total:
the timeouts of HTTP libraries count from the last byte, so a server that sends one byte a second would never be late.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import email.utils
import logging
import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from verl_uae.reward.outcome import describe_error
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.reward.remote.auth import keep_phrases_out_of_logs, scrub
from verl_uae.reward.remote.protocol import JSON_TYPE

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: First wait before a retry, and the longest, seconds; the wait is drawn from 0 to its doubling bound ("full jitter").
BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0

#: After the deadline: to let go of connections, and then for a loop that does not answer at all, seconds.
CLOSING_S, STUCK_S = 0.2, 0.5

#: Longest time to open a connection, seconds; less where half the timeout is less, so that another try fits in.
CONNECT_S = 5.0

#: For how long a server that has not answered comes after the others, seconds; then one request finds out.
REST_S = 30.0

#: How much of the text of a refusal is kept, bytes.
REFUSAL_BYTES = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSettings:
    """How to ask. Checked by :class:`verl_uae.reward.remote.term.RemoteReward`."""

    urls: tuple[str, ...]
    """Base addresses of servers that score alike."""
    timeout_s: float
    """Seconds for everything one batch needs."""
    retries: int
    """Further tries of one request; those that a busy server asks for with ``Retry-After`` do not count."""
    concurrency: int
    """Requests in flight."""
    max_answer_bytes: int
    ca_file: str | None = None
    """Certificates to trust instead of the public ones."""


class RequestError(Exception):
    """One request brought no answer that could be read.

    Args:
        status: what it makes of its samples.
        reason: why.
        retry: whether another try may help.
        alive: whether the server has spoken.
        refused: whether a server has said no for good, so that waiting does not help.
        wait_s: seconds the server asks to wait.
    """

    def __init__(
        self,
        status: Status,
        reason: str,
        *,
        retry: bool = False,
        alive: bool = True,
        refused: bool = False,
        wait_s: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry = retry
        self.alive = alive
        self.refused = refused
        self.wait_s = wait_s

    def record(self, label: str, seconds: float = 0.0) -> RewardRecord:
        """The record of a sample that it costs the term with that label."""
        return RewardRecord.failed(self.status, f"{label}: {self.reason}", seconds)


#: Makes the body of a request; called in a thread.
Job = Callable[[], bytes]
Reply = bytes | RequestError


class RemoteClient:
    """Asks reward servers. Methods are called from ordinary threads and return by their deadline.

    Args:
        settings: how to ask.
        token: bearer token, or None.
        clock: seconds that never go back, for how long a server rests.
    """

    def __init__(
        self, settings: ClientSettings, token: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self._token = token
        self._clock = clock
        self._turn = 0
        self._rests: dict[str, float] = {}
        self._jitter = random.Random()
        self._encoders = concurrent.futures.ThreadPoolExecutor(settings.concurrency, "reward-encode")
        self._loop = _Loop()
        self._http, self._gate = self._loop.run(self._open(), 10.0)
        weakref.finalize(self, self._loop.stop)

    def post(self, path: str, jobs: Sequence[Job], deadline: float) -> list[Reply]:
        """Send requests, several at a time, to the servers in turn; those that have not answered come last.

        Args:
            path: below the base address.
            jobs: makers of the bodies.
            deadline: on the clock of ``time.monotonic``.

        Returns:
            For every job the body of a well-formed answer, or what went wrong.
        """
        return self._meet(deadline, [self._request(path, job, deadline) for job in jobs])

    def clean(self, text: str) -> str:
        """A text that a server may have written; see :func:`~verl_uae.reward.remote.auth.scrub`."""
        return scrub(text, self._token)

    def get(self, path: str, deadline: float) -> list[Reply]:
        """Ask every server the same; one reply for every address."""
        return self._meet(deadline, [self._try(path, None, deadline, url) for url in self.settings.urls])

    def close(self) -> None:
        """Let go of connections and threads; calls must be over."""
        self._loop.run(self._http.aclose(), 1.0)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._loop.stop()

    async def _open(self) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        ca_file = self.settings.ca_file
        connect_s = min(CONNECT_S, self.settings.timeout_s / 2)
        http = httpx.AsyncClient(
            # Environment variables must not send pictures and token to a proxy.
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=connect_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.settings.concurrency),
            verify=True if ca_file is None else ssl.create_default_context(cafile=ca_file),
            headers={"Accept": JSON_TYPE, "Accept-Encoding": "identity", "User-Agent": "verl-uae"},
        )
        keep_phrases_out_of_logs()
        if self._token is not None:
            http.headers["Authorization"] = f"Bearer {self._token}"
        return http, asyncio.Semaphore(self.settings.concurrency)

    # ---------------------------------------------------------------- inside the loop

    def _meet(self, deadline: float, calls: Sequence[Coroutine[Any, Any, bytes]]) -> list[Reply]:
        late = RequestError(Status.TIMEOUT, f"no answer within {self.settings.timeout_s:g} s", alive=False)
        wait_s = max(0.0, deadline - time.monotonic()) + CLOSING_S + STUCK_S
        try:
            return self._loop.run(_gather(calls, deadline, late), wait_s)
        except concurrent.futures.TimeoutError:
            return [late] * len(calls)

    async def _request(self, path: str, job: Job, deadline: float) -> bytes:
        async with self._gate:
            body = await asyncio.get_running_loop().run_in_executor(self._encoders, job)
            return await self._try(path, body, deadline)

    async def _try(self, path: str, body: bytes | None, deadline: float, url: str | None = None) -> bytes:
        """One request with its retries; to ``url``, else to the next server."""
        attempt = 0
        while True:
            try:
                return await self._attempt(url or self._choose(), path, body)
            except RequestError as error:
                last = error
            # A server that says when to come back is well, and busy with other requests or loading: the deadline
            # bounds how often it is asked.
            busy = last.alive and last.wait_s > 0.0
            bound_s = min(BACKOFF_S * 2**attempt, MAX_BACKOFF_S)
            wait_s = last.wait_s + self._jitter.uniform(0.0, bound_s)
            exhausted = attempt == self.settings.retries and not busy
            if not last.retry or exhausted or time.monotonic() + wait_s >= deadline:
                raise last
            attempt += not busy
            await asyncio.sleep(wait_s)

    def _choose(self) -> str:
        """The next server; one that rests only where all do."""
        self._turn += 1
        start = self._turn % len(self.settings.urls)
        now = self._clock()
        in_turn = (*self.settings.urls[start:], *self.settings.urls[:start])
        chosen = min(in_turn, key=lambda url: self._rests.get(url, now) > now)
        if chosen in self._rests:
            # This request finds out whether it is back; the others need not wait for it.
            self._rests[chosen] = now + REST_S
        return chosen

    async def _attempt(self, url: str, path: str, body: bytes | None) -> bytes:
        alive = False
        try:
            answer = await self._send(url, path, body)
            alive = True
            return answer
        except RequestError as error:
            alive = error.alive
            raise
        # Also where the deadline has cancelled this: a server that is too late has failed.
        finally:
            if alive:
                self._rests.pop(url, None)
            else:
                self._rests[url] = self._clock() + REST_S

    async def _send(self, url: str, path: str, body: bytes | None) -> bytes:
        headers = {} if body is None else {"Content-Type": JSON_TYPE}
        method = "GET" if body is None else "POST"
        try:
            async with self._http.stream(method, url + path, content=body, headers=headers) as response:
                return await self._read(url, response)
        except httpx.ConnectTimeout as error:
            raise RequestError(Status.TIMEOUT, f"{url}: no connection in time", retry=True, alive=False) from error
        except httpx.TransportError as error:
            reason = scrub(f"{url}: {describe_error(error)}", self._token)
            raise RequestError(Status.ERROR, reason, retry=True, alive=False) from error

    async def _read(self, url: str, response: httpx.Response) -> bytes:
        code = response.status_code
        if code != 200:
            text = await _start(response, REFUSAL_BYTES) if code >= 400 else ""
            raise refusal(url, code, scrub(text, self._token), response.headers.get("Retry-After"))
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != JSON_TYPE:
            raise RequestError(
                Status.INVALID, f"{url}: answered with {kind[:60] or 'no content type'}, not {JSON_TYPE}"
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RequestError(Status.INVALID, f"{url}: answered compressed, which was not asked for")
        limit = self.settings.max_answer_bytes
        too_large = RequestError(Status.INVALID, f"{url}: answered with more than {limit} bytes")
        length = response.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise too_large
        answer = bytearray()
        async for piece in response.aiter_raw():
            answer += piece
            if len(answer) > limit:
                raise too_large
        return bytes(answer)


def refusal(url: str, code: int, text: str, retry_after: str | None) -> RequestError:
    """What an HTTP status other than 200 means.

    Args:
        url: who answered.
        code: HTTP status.
        text: start of the body.
        retry_after: header, or None.
    """
    said = " ".join(text.split())
    reason = f"{url}: HTTP {code}{f': {said}' if said else ''}"
    if code < 400:
        return RequestError(
            Status.INVALID, f"{reason}: only 200 is an answer, redirects are not followed", refused=True
        )
    if code in (429, 503):
        # With Retry-After a server speaks for itself; without, a proxy may speak for one that is gone.
        alive = code == 429 or retry_after is not None
        return RequestError(Status.ERROR, reason, retry=True, alive=alive, wait_s=retry_after_s(retry_after))
    if code in (502, 504):
        return RequestError(Status.ERROR, reason, retry=True, alive=False, wait_s=retry_after_s(retry_after))
    return RequestError(Status.ERROR, reason, alive=code < 500, refused=code < 500)


def retry_after_s(header: str | None) -> float:
    """Seconds a ``Retry-After`` header asks for (RFC 9110, 10.2.3: seconds or a date); 0 for anything else."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


async def _start(response: httpx.Response, limit: int) -> str:
    """The first bytes of a body as text."""
    found = bytearray()
    async for piece in response.aiter_raw():
        found += piece
        if len(found) >= limit:
            break
    return bytes(found[:limit]).decode("utf-8", "replace")


async def _gather(calls: Sequence[Coroutine[Any, Any, bytes]], deadline: float, late: RequestError) -> list[Reply]:
    """Run calls together until the deadline."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    if not tasks:
        return []
    await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=CLOSING_S)
    return [late if task in pending else _outcome(task) for task in tasks]


def _outcome(task: asyncio.Future[bytes]) -> Reply:
    error = task.exception()
    if error is None:
        return task.result()
    return error if isinstance(error, RequestError) else RequestError(Status.ERROR, describe_error(error))


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._serve, name="reward-remote", daemon=True).start()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run to the end, from another thread.

        Raises:
            concurrent.futures.TimeoutError: after ``timeout_s`` seconds.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()

    def stop(self) -> None:
        """End the thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
