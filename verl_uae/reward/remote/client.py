# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Many requests to reward servers, by one deadline; servers that answer come before those that do not.

All waiting happens in an event loop of its own, in a daemon thread, so that the caller is back by the deadline whatever
a server does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, Strict

from verl_uae.reward.record import describe_error
from verl_uae.reward.remote.protocol import JSON_TYPE, MEMBERS, Bounds, Member
from verl_uae.web import Fault, Retries, UnansweredError, WebClient

T = TypeVar("T")

#: HTTP statuses after which a request is sent again: too many requests, bad gateway, unavailable, gateway time-out.
RETRIED = frozenset({429, 502, 503, 504})

#: First wait before a retry, and the longest, seconds.
BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0

#: After the deadline: to let go of connections, and then for a loop that does not answer at all, seconds.
CLOSING_S, STUCK_S = 0.2, 0.5

#: Longest time to open a connection, seconds; less where half the timeout is less, so that another try fits in.
CONNECT_S = 5.0

#: For how long a server that has not answered comes after the others, seconds; then one request finds out.
REST_S = 30.0


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good &= url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise ValueError("must be an address like http://host:8900")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password; give a token_file instead")
    return url.rstrip("/")


def _distinct(urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(urls)) != len(urls):
        raise ValueError("names a server twice")
    return urls


class RemoteSettings(BaseModel):
    """How to ask; see :class:`verl_uae.reward.remote.term.RemoteReward`."""

    model_config = ConfigDict(strict=True, frozen=True, hide_input_in_errors=True)

    url: Annotated[
        tuple[Annotated[str, AfterValidator(_address)], ...],
        Strict(False),
        Field(min_length=1),
        BeforeValidator(lambda raw: (raw,) if isinstance(raw, str) else raw),
        AfterValidator(_distinct),
    ]
    timeout_s: Annotated[FiniteFloat, Field(gt=0)]
    send: Annotated[frozenset[Member], Strict(False), Field(min_length=1)] = frozenset(MEMBERS)
    bounds: Bounds | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    concurrency: Annotated[int, Field(ge=1)] = 4
    retries: Annotated[int, Field(ge=0)] = 2
    max_answer_mib: Annotated[FiniteFloat, Field(gt=0)] = 4.0
    ca_file: str | None = None


#: Makes the body of a request; called in a thread.
Job = Callable[[], bytes]
Reply = bytes | UnansweredError


class RemoteClient:
    """Asks reward servers. Methods are called from ordinary threads and return by their deadline.

    Args:
        settings: how to ask.
        token: bearer token, or None.
        clock: seconds that never go back, also of deadlines.
        sleep: waits between tries.

    Raises:
        OSError: ``settings.ca_file`` cannot be read or holds no certificates.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        token: str | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.settings = settings
        self._clock = clock
        # Environment variables must not send pictures and token to a proxy.
        self._web = WebClient(
            token,
            int(settings.max_answer_mib * 2**20),
            kind=JSON_TYPE,
            connect_s=min(CONNECT_S, settings.timeout_s / 2),
            ca_file=settings.ca_file,
            proxies=False,
        )
        self._retries = Retries(RETRIED, settings.retries, BACKOFF_S, MAX_BACKOFF_S, clock=clock, sleep=sleep)
        self.clean = self._web.clean
        self._turn = 0
        self._rests: dict[str, float] = {}
        self._gate = asyncio.Semaphore(settings.concurrency)
        self._encoders = concurrent.futures.ThreadPoolExecutor(settings.concurrency, "reward-encode")
        self._loop = _Loop()
        weakref.finalize(self, self._loop.stop)

    def post(self, path: str, jobs: Sequence[Job], deadline: float) -> list[Reply]:
        """Send requests, several at a time, to the servers in turn; those that have not answered come last.

        Returns:
            For every job, which makes a body, that of a well-formed answer, or what went wrong.
        """
        return self._meet(deadline, [self._request(path, job, deadline) for job in jobs])

    def get(self, path: str, deadline: float) -> list[Reply]:
        """Ask every server the same; one reply for every address."""
        attempts = [functools.partial(self._attempt, url, path) for url in self.settings.url]
        return self._meet(deadline, [self._retries.persist(attempt, deadline) for attempt in attempts])

    def close(self) -> None:
        """Let go of connections and threads; calls must be over."""
        self._loop.run(self._web.aclose(), 1.0)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._loop.stop()

    # ---------------------------------------------------------------- inside the loop

    def _meet(self, deadline: float, calls: Sequence[Coroutine[Any, Any, bytes]]) -> list[Reply]:
        late = UnansweredError(Fault.TIMEOUT, f"no answer within {self.settings.timeout_s:g} s")
        left_s = max(0.0, deadline - self._clock())
        try:
            return self._loop.run(_gather(calls, left_s, late), left_s + CLOSING_S + STUCK_S)
        except concurrent.futures.TimeoutError:
            return [late] * len(calls)

    async def _request(self, path: str, job: Job, deadline: float) -> bytes:
        async with self._gate:
            body = await asyncio.get_running_loop().run_in_executor(self._encoders, job)
            return await self._retries.persist(lambda: self._attempt(self._choose(), path, body), deadline)

    def _choose(self) -> str:
        """The next server; one that rests only where all do."""
        self._turn += 1
        start = self._turn % len(self.settings.url)
        now = self._clock()
        in_turn = (*self.settings.url[start:], *self.settings.url[:start])
        chosen = min(in_turn, key=lambda url: self._rests.get(url, now) > now)
        if chosen in self._rests:
            # This request finds out whether it is back; the others need not wait for it.
            self._rests[chosen] = now + REST_S
        return chosen

    async def _attempt(self, url: str, path: str, body: bytes | None = None) -> bytes:
        alive = False
        try:
            answer = await self._web.send("GET" if body is None else "POST", url + path, body, kind=JSON_TYPE)
            alive = True
            return answer
        except UnansweredError as error:
            alive = error.alive
            error.reason = f"{url}: {error.reason}"
            raise
        # Also where the deadline has cancelled this: a server that is too late has failed.
        finally:
            if alive:
                self._rests.pop(url, None)
            else:
                self._rests[url] = self._clock() + REST_S


async def _gather(calls: Sequence[Coroutine[Any, Any, bytes]], timeout_s: float, late: UnansweredError) -> list[Reply]:
    """Run calls together."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    if not tasks:
        return []
    _, pending = await asyncio.wait(tasks, timeout=timeout_s)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=CLOSING_S)
    return [late if not task.done() or task.cancelled() else _outcome(task) for task in tasks]


def _outcome(task: asyncio.Future[bytes]) -> Reply:
    error = task.exception()
    if error is None or isinstance(error, UnansweredError):
        return error or task.result()
    return UnansweredError(Fault.ERROR, describe_error(error))


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
