# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import email.utils
import gc
import threading
import time
from collections.abc import Callable

import pytest

from tests.reward.remote.conftest import wait_until, within
from tests.reward.remote.faults import FaultServer, free_port, good, reply
from verl_uae.reward import Status
from verl_uae.reward.remote.client import REST_S, ClientSettings, RemoteClient, RequestError, refusal, retry_after_s

BODY = b'{"samples": []}'


def make_client(
    *urls: str, timeout_s: float = 0.5, clock: Callable[[], float] = time.monotonic, **changes: float
) -> RemoteClient:
    settings = {"retries": 2, "concurrency": 4, "max_answer_bytes": 2**20, **changes}
    return RemoteClient(ClientSettings(urls=urls, timeout_s=timeout_s, **settings), None, clock)


def post(client: RemoteClient, count: int = 1, timeout_s: float | None = None) -> list[str]:
    """Statuses of ``count`` requests, each "ok" or that of its failure."""
    deadline = time.monotonic() + (timeout_s or client.settings.timeout_s)
    replies = client.post("/v1/score", [lambda: BODY] * count, deadline)
    return [str(reply.status) if isinstance(reply, RequestError) else "ok" for reply in replies]


def test_retries_are_bounded() -> None:
    for retries in (0, 1, 4):
        with FaultServer(reply("", "503 Service Unavailable")) as server:
            assert post(make_client(server.url, timeout_s=20.0, retries=retries)) == ["error"]
            assert len(server.heads) == 1 + retries


def test_retry_after_is_waited_for() -> None:
    busy = reply("", "503 Service Unavailable", "text/plain", "Retry-After: 1")
    with FaultServer(busy, good) as server:
        start = time.monotonic()
        assert post(make_client(server.url, timeout_s=20.0)) == ["ok"]
        assert time.monotonic() - start >= 1.0


def test_a_busy_server_is_asked_until_the_deadline_whatever_the_retries() -> None:
    busy = reply("", "503 Service Unavailable", "text/plain", "Retry-After: 1")
    with FaultServer(busy, busy, good) as server:
        assert post(make_client(server.url, timeout_s=20.0, retries=0)) == ["ok"]
        assert len(server.heads) == 3
    with FaultServer(busy) as server, within(2.5 + 1.0):
        assert post(make_client(server.url, timeout_s=2.5, retries=0)) == ["error"]
        assert 2 <= len(server.heads) <= 3
    # A proxy that says so of a server it does not reach does not know.
    with FaultServer(reply("", "502 Bad Gateway", "text/plain", "Retry-After: 1")) as server, within(5.0):
        assert post(make_client(server.url, timeout_s=20.0, retries=1)) == ["error"]
        assert len(server.heads) == 2


def test_retry_after_beyond_the_deadline_ends_the_request_at_once() -> None:
    for header in ("Retry-After: 3600", f"Retry-After: {email.utils.formatdate(time.time() + 3600, usegmt=True)}"):
        with FaultServer(reply("", "429 Too Many Requests", "text/plain", header)) as server, within(10.0):
            assert post(make_client(server.url, timeout_s=20.0)) == ["error"]
            assert len(server.heads) == 1


def test_retry_after_s() -> None:
    assert retry_after_s("7") == 7.0 and retry_after_s(None) == 0.0
    assert 50 < retry_after_s(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [retry_after_s(text) for text in ("soon", "-5", "nan", "", "Wed, 21 Oct 2015 07:28:00 GMT")] == [0.0] * 5


@pytest.mark.parametrize(
    ("code", "header", "retry", "alive", "refused"),
    [
        (503, "1", True, True, False),
        (503, None, True, False, False),
        (429, None, True, True, False),
        (502, None, True, False, False),
        (504, None, True, False, False),
        (500, None, False, False, False),
        (404, None, False, True, True),
        (307, None, False, True, True),
        (204, None, False, True, True),
    ],
)
def test_what_a_refusal_means(code: int, header: str | None, retry: bool, alive: bool, refused: bool) -> None:
    error = refusal("http://here", code, "said\n  this", header)
    assert (error.retry, error.alive, error.refused) == (retry, alive, refused)
    assert error.status == (Status.ERROR if code >= 400 else Status.INVALID)
    assert error.record("remote", 0.1).reason.startswith(f"remote: http://here: HTTP {code}: said this")


def test_no_more_than_concurrency_requests_at_a_time() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def slow(connection, body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        good(connection, body)

    with FaultServer(slow) as server:
        assert post(make_client(server.url, timeout_s=10.0, concurrency=3), 9) == ["ok"] * 9
    assert most[0] == 3


# ---------------------------------------------------------------- several servers


def test_a_server_that_does_not_answer_comes_last_until_one_request_finds_it_well() -> None:
    now = [0.0]
    with FaultServer(reply("", "502 Bad Gateway")) as bad, FaultServer(good) as well:
        client = make_client(bad.url, well.url, timeout_s=20.0, concurrency=1, clock=lambda: now[0])
        assert post(client, 6) == ["ok"] * 6 and len(bad.heads) == 1
        now[0] = REST_S + 1.0
        assert post(client, 6) == ["ok"] * 6 and len(bad.heads) == 2
        now[0] += REST_S + 1.0
        bad.behaviours = (good,)
        # The first finds it well, and they share the work again.
        assert post(client, 6) == ["ok"] * 6 and len(bad.heads) == 2 + 3


def test_a_server_that_hangs_costs_what_it_was_asked_once() -> None:
    with FaultServer() as stuck, FaultServer(good) as well:
        stuck.behaviours = (stuck.hang,)
        client = make_client(stuck.url, well.url, timeout_s=1.0)
        assert sorted(post(client, 4)) == ["ok", "ok", "timeout", "timeout"]
        assert post(client, 4, timeout_s=20.0) == ["ok"] * 4 and len(stuck.heads) == 2


def test_the_only_server_is_asked_with_every_batch() -> None:
    """So a dead one costs a batch its timeout and no more, and one that is back is found at once."""
    with FaultServer() as server:
        server.behaviours = (server.hang,)
        client = make_client(server.url, timeout_s=0.5)
        for _ in range(3):
            with within(0.5 + 1.0):
                assert post(client, 2) == ["timeout"] * 2
        server.behaviours = (good,)
        assert post(client, 2, timeout_s=20.0) == ["ok"] * 2


def test_a_busy_server_and_a_lying_one_are_alive() -> None:
    busy = reply("", "503 Service Unavailable", "text/plain", "Retry-After: 0")
    for behaviour, status in ((busy, "error"), (reply("", "200 OK", "text/html"), "invalid")):
        with FaultServer(behaviour) as server, FaultServer(good) as well:
            client = make_client(server.url, well.url, timeout_s=20.0, retries=0, concurrency=1)
            assert sorted(post(client, 4)) == sorted([status, status, "ok", "ok"])
            assert len(server.heads) == 2


# ---------------------------------------------------------------- deadline


def test_the_deadline_holds_with_retries_and_waits_in_it() -> None:
    with FaultServer(reply("", "503 Service Unavailable")) as server, within(2.0 + 1.0):
        assert post(make_client(server.url, retries=1000, timeout_s=2.0)) == ["error"]
        assert 1 < len(server.heads) < 50


def test_an_address_that_swallows_packets_is_a_timeout() -> None:
    """A full backlog: the kernel neither accepts nor refuses."""
    import socket

    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        with within(0.5 + 1.0):
            assert post(make_client(f"http://127.0.0.1:{address[1]}")) == ["timeout"]
        for filler in fillers:
            filler.close()


def test_a_body_that_takes_too_long_to_make_is_a_timeout() -> None:
    release = threading.Event()
    client = make_client(f"http://127.0.0.1:{free_port()}", timeout_s=0.3)
    try:
        with within(0.3 + 1.0):
            (late,) = client.post("/", [lambda: b"x" * release.wait(10)], time.monotonic() + 0.3)
    finally:
        release.set()
    assert isinstance(late, RequestError) and late.status == Status.TIMEOUT


def test_a_loop_that_is_stuck_cannot_hold_the_caller() -> None:
    release = threading.Event()
    client = make_client(f"http://127.0.0.1:{free_port()}", timeout_s=0.2)
    client._loop._loop.call_soon_threadsafe(release.wait, 10)
    try:
        with within(0.2 + 1.0):
            assert post(client) == ["timeout"]
    finally:
        release.set()


def test_what_making_a_body_raises_is_an_error() -> None:
    client = make_client(f"http://127.0.0.1:{free_port()}")
    (failed,) = client.post("/", [lambda: bytes(int("no number"))], time.monotonic() + 20)
    assert isinstance(failed, RequestError) and failed.status == Status.ERROR and "ValueError" in failed.reason


def test_its_thread_ends_with_it() -> None:
    def loops() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "reward-remote"}

    before = loops()
    client = make_client("http://127.0.0.1:1")
    (mine,) = loops() - before
    client.close()
    wait_until(lambda: not mine.is_alive())
    client = make_client("http://127.0.0.1:1")
    (mine,) = loops() - before
    del client
    gc.collect()
    wait_until(lambda: not mine.is_alive())
