# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import email.utils
import gc
import threading
import time

from tests.reward.remote.conftest import wait_until, within
from tests.reward.remote.faults import FaultServer, free_port, good, reply
from tests.test_web import Clock
from verl_uae.reward.remote.client import BACKOFF_S, REST_S, RemoteClient, RemoteSettings
from verl_uae.web import Fault, UnansweredError

BODY = b'{"samples": []}'


def make_client(*urls: str, timeout_s: float = 0.5, clock: Clock | None = None, **changes: float) -> RemoteClient:
    settings = RemoteSettings(url=urls, timeout_s=timeout_s, **changes)
    time_of = {} if clock is None else {"clock": clock, "sleep": clock.sleep}
    return RemoteClient(settings, None, **time_of)


def post(client: RemoteClient, count: int = 1, timeout_s: float | None = None) -> list[str]:
    """Statuses of ``count`` requests, each "ok" or that of its failure."""
    deadline = client._clock() + (timeout_s or client.settings.timeout_s)
    replies = client.post("/v1/score", [lambda: BODY] * count, deadline)
    return [reply.fault.value if isinstance(reply, UnansweredError) else "ok" for reply in replies]


def test_retries_are_bounded() -> None:
    for retries in (0, 1, 4):
        with FaultServer(reply("", "503 Service Unavailable")) as server:
            assert post(make_client(server.url, timeout_s=20.0, retries=retries)) == ["error"]
            assert len(server.heads) == 1 + retries


def test_a_busy_server_is_asked_until_the_deadline_whatever_the_retries() -> None:
    busy = reply("", "503 Service Unavailable", "text/plain", "Retry-After: 7")
    clock = Clock()
    with FaultServer(busy, busy, good) as server:
        assert post(make_client(server.url, timeout_s=20.0, retries=0, clock=clock)) == ["ok"]
        assert len(server.heads) == 3 and 14.0 <= sum(clock.naps) <= 14.0 + 2 * BACKOFF_S
    for header in ("Retry-After: 7", f"Retry-After: {email.utils.formatdate(time.time() + 3600, usegmt=True)}"):
        clock = Clock()
        with FaultServer(reply("", "429 Too Many Requests", "text/plain", header)) as server:
            assert post(make_client(server.url, timeout_s=20.0, retries=0, clock=clock)) == ["error"]
            assert len(server.heads) == (3 if header.endswith(" 7") else 1) and clock.now < 100.0 + 20.0


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
    clock = Clock()
    with FaultServer(reply("", "502 Bad Gateway")) as bad, FaultServer(good) as well:
        client = make_client(bad.url, well.url, timeout_s=20.0, concurrency=1, clock=clock)
        assert post(client, 6) == ["ok"] * 6 and len(bad.heads) == 1
        clock.now += REST_S + 1.0
        assert post(client, 6) == ["ok"] * 6 and len(bad.heads) == 2
        clock.now += REST_S + 1.0
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


def test_a_try_that_the_deadline_ends_tells_what_failed_before() -> None:
    """As where the last of several tries has just begun."""
    with FaultServer(reply("", "503 Service Unavailable")) as server, within(0.5 + 1.0):
        server.behaviours = (*server.behaviours, server.hang)
        (failed,) = make_client(server.url).post("/v1/score", [lambda: BODY], time.monotonic() + 0.5)
    assert isinstance(failed, UnansweredError) and failed.fault is Fault.ERROR and "503" in failed.reason


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
    assert isinstance(late, UnansweredError) and late.fault is Fault.TIMEOUT


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
    assert isinstance(failed, UnansweredError) and failed.fault is Fault.ERROR and "ValueError" in failed.reason


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
