# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import concurrent.futures
import hashlib
import json
import socket
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.reward.remote.conftest import wait_until, within
from tests.reward.remote.test_service import samples_of
from verl_uae.errors import ConfigError, RewardError
from verl_uae.reward import RewardScorer
from verl_uae.reward.remote.protocol import request_message
from verl_uae.reward.remote.server import ServerSettings, authorized

TOKEN = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}

WAITING = """
    import threading
    ENTERED, RELEASE = threading.Event(), threading.Event()
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        ENTERED.set()
        RELEASE.wait(20)
        return 0.25
"""

COUNTING = """
    import time
    BUSY, MOST = [], [0]
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        BUSY.append(1)
        MOST[0] = max(MOST[0], len(BUSY))
        time.sleep(0.05)
        BUSY.pop()
        return 1.0
"""


@pytest.fixture
def client():
    with httpx.Client(trust_env=False, timeout=20.0) as client:
        yield client


@pytest.fixture
def body(make_levels) -> bytes:
    return body_of(make_levels(3))


def body_of(batch) -> bytes:
    return request_message([{"id": s.id, "place": s.place, **s.members} for s in samples_of(batch)])


def waiting_term(folder: Path) -> dict[str, object]:
    file = folder / "waiting.py"
    file.write_text(textwrap.dedent(WAITING))
    return {"name": "custom", "params": {"path": str(file)}}


def events_of(server) -> dict[str, threading.Event]:
    return server._service.scorer._summed[0].term._function.__globals__


def metrics(client: httpx.Client, url: str) -> dict[str, float]:
    text = client.get(f"{url}/metrics").text
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_scores_by_the_documented_protocol(make_levels, start_server, client: httpx.Client, body: bytes) -> None:
    url, _ = start_server(["pixel", {"name": "ssim", "held_out": True}])
    response = client.post(f"{url}/v1/score", content=body, headers=JSON)
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    local = RewardScorer([("pixel", 1.0, {})], held_out=[("ssim", {})]).score(make_levels(3))
    answer = response.json()
    health = client.get(f"{url}/health").json()
    assert answer == {
        "version": 1,
        "fingerprint": health["fingerprint"],
        "records": [
            {"id": f"id {i}", "status": "ok", "value": record.value, "terms": dict(record.terms)}
            for i, record in enumerate(local)
        ],
    }


def test_health_says_what_is_served(start_server, client: httpx.Client, tmp_path: Path) -> None:
    import verl_uae

    entry = waiting_term(tmp_path)
    url, _ = start_server([{**entry, "floor": 0.1}, {"name": "pixel", "weight": 0.5}], max_samples=8)
    health = client.get(f"{url}/health").json()
    assert (health["version"], health["status"], health["device"]) == (1, "ready", "cpu")
    assert health["bounds"] == [None, None] and health["needs"] == ["caption", "reconstruction", "row", "source"]
    assert health["limits"]["max_samples"] == 8
    digest = hashlib.sha256((tmp_path / "waiting.py").read_bytes()).hexdigest()
    assert health["files"]["custom"]["sha256"] == digest
    assert [(term["name"], term["weight"], term["floor"]) for term in health["terms"]] == [
        ("custom", 1.0, 0.1),
        ("pixel", 0.5, None),
    ]
    assert health["versions"]["verl_uae"] == verl_uae.__version__


def test_token(start_server, client: httpx.Client, body: bytes) -> None:
    url, _ = start_server("pixel", token=TOKEN)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        refused = client.post(f"{url}/v1/score", content=body, headers={**JSON, **headers})
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert client.get(f"{url}/metrics", headers=headers).status_code == 401
    assert client.get(f"{url}/health", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get(f"{url}/health").json() == {"version": 1, "status": "ready"}
    assert "fingerprint" in client.get(f"{url}/health", headers=BEARER).json()
    assert client.post(f"{url}/v1/score", content=body, headers={**JSON, **BEARER}).status_code == 200
    assert client.get(f"{url}/metrics", headers=BEARER).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "code", "reason"),
    [
        (b"{", JSON, 400, "not JSON"),
        (b'{"version": 1, "samples": []}', JSON, 400, "must have at least 1 item"),
        (b'{"version": 9, "samples": [{"id": "a"}]}', JSON, 400, "version"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b" " * 5000, JSON, 413, "5000 bytes, limit 4096"),
    ],
)
def test_requests_that_are_refused(
    start_server, client: httpx.Client, content: bytes, headers: dict[str, str], code: int, reason: str
) -> None:
    url, _ = start_server("pixel", max_body_bytes=4096)
    response = client.post(f"{url}/v1/score", content=content, headers=headers)
    assert response.status_code == code and reason in response.json()["error"]


def test_a_body_without_a_length_is_limited_too(start_server, client: httpx.Client) -> None:
    url, _ = start_server("pixel", max_body_bytes=4096)
    response = client.post(f"{url}/v1/score", content=iter([b" " * 3000] * 2), headers=JSON)
    assert response.status_code == 413


def test_too_many_samples_unknown_paths_and_methods(start_server, client: httpx.Client, body: bytes) -> None:
    url, _ = start_server("pixel", max_samples=2)
    assert "3 samples, limit 2" in client.post(f"{url}/v1/score", content=body, headers=JSON).json()["error"]
    for method, path, code in (("GET", "/v1/score", 405), ("GET", "/docs", 404), ("GET", "/openapi.json", 404)):
        assert client.request(method, f"{url}{path}").status_code == code


def test_a_body_that_does_not_come_is_given_up(start_server) -> None:
    url, server = start_server("pixel", read_timeout_s=0.2)
    host, port = url.removeprefix("http://").split(":")
    with within(10.0), socket.create_connection((host, int(port))) as connection:
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head.encode())
        assert connection.makefile().readline().split()[1] == "408"
    wait_until(lambda: server._in_flight == 0)


def test_health_answers_and_more_are_told_to_come_back_while_a_batch_is_scored(
    start_server, client: httpx.Client, tmp_path: Path, body: bytes
) -> None:
    url, server = start_server(waiting_term(tmp_path), max_in_flight=1)
    events = events_of(server)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{url}/v1/score", content=body, headers=JSON, timeout=20.0, trust_env=False)
        try:
            assert events["ENTERED"].wait(10)
            with within(10.0):
                assert client.get(f"{url}/health").status_code == 200
                found = metrics(client, url)
            assert found["verl_uae_reward_in_flight"] == 1 and found["verl_uae_reward_ready"] == 1
            # A body larger than the socket buffers: the refusal must reach a client that is still writing.
            busy = client.post(f"{url}/v1/score", content=body + b" " * 2**23, headers=JSON)
            assert busy.status_code == 503 and busy.headers["retry-after"] == "1"
        finally:
            events["RELEASE"].set()
        assert [record["value"] for record in first.result().json()["records"]] == [0.25] * 3
    assert metrics(client, url)["verl_uae_reward_in_flight"] == 0


def test_metrics_count_requests_and_samples(start_server, client: httpx.Client, body: bytes) -> None:
    url, _ = start_server("pixel")
    message = json.loads(body)
    message["samples"][1]["source"] = "broken"
    for content in (body, json.dumps(message).encode(), b"{"):
        client.post(f"{url}/v1/score", content=content, headers=JSON)
    client.get(f"{url}/health")
    found = metrics(client, url)
    assert found["verl_uae_reward_requests_total200"] == 2 and found["verl_uae_reward_requests_total400"] == 1
    assert found["verl_uae_reward_samples_totalok"] == 5 and found["verl_uae_reward_samples_totalinvalid"] == 1
    assert found["verl_uae_reward_request_seconds_count"] == 3 and found["verl_uae_reward_request_seconds_sum"] > 0


def test_a_server_that_loads_says_so(start_server, make_service, client: httpx.Client, body: bytes) -> None:
    release = threading.Event()

    def load():
        release.wait(20)
        return make_service("pixel")

    url, _ = start_server(None, load=load)
    try:
        loading = client.get(f"{url}/health")
        assert loading.status_code == 503 and loading.json()["status"] == "loading"
        refused = client.post(f"{url}/v1/score", content=body, headers=JSON)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
    finally:
        release.set()
    wait_until(lambda: client.get(f"{url}/health").status_code == 200)


def test_a_term_that_cannot_go_on_is_a_500_with_its_reason(
    start_server, client: httpx.Client, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, server = start_server("pixel")

    def broken(batch):
        raise RewardError("pixel", "too many calls hang")

    monkeypatch.setattr(server._service.scorer, "score", broken)
    response = client.post(f"{url}/v1/score", content=body, headers=JSON)
    assert response.status_code == 500 and "too many calls hang" in response.json()["error"]


def test_a_request_of_too_many_pixels_is_a_413(start_server, make_service, client: httpx.Client, body: bytes) -> None:
    url, _ = start_server(None, load=lambda: make_service("pixel", max_request_pixels=16 * 16))
    wait_until(lambda: client.get(f"{url}/health").status_code == 200)
    response = client.post(f"{url}/v1/score", content=body, headers=JSON)
    assert response.status_code == 413 and "limit 256 pixels (--max-request-pixels)" in response.json()["error"]


def test_a_client_that_goes_away_leaves_nothing_behind(start_server) -> None:
    url, server = start_server("pixel")
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        wait_until(lambda: server._in_flight == 1)
    wait_until(lambda: server._in_flight == 0)


def test_settings_that_are_refused() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="give a token"):
            ServerSettings(host=host)
        ServerSettings(host=host, token=TOKEN)
        ServerSettings(host=host, insecure=True)
    for changes in ({"max_samples": 0}, {"max_body_bytes": 0}, {"max_in_flight": 0}, {"read_timeout_s": 0.0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            ServerSettings(**changes)
    with pytest.raises(ConfigError, match="belong together"):
        ServerSettings(certificate="cert.pem")


def test_authorized() -> None:
    assert authorized(f"Bearer {TOKEN}", TOKEN) and authorized(f"bearer  {TOKEN} ", TOKEN)
    for header in (None, "", TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}0", f"Bearer {TOKEN[:-1]}", "Bearer é"):
        assert not authorized(header, TOKEN), header


def test_two_requests_at_a_time_are_scored_one_after_the_other(
    make_levels, start_server, client: httpx.Client, tmp_path: Path
) -> None:
    """The scorer shares features between the terms of one batch at a time."""
    file = tmp_path / "reward.py"
    file.write_text(textwrap.dedent(COUNTING))
    url, server = start_server({"name": "custom", "params": {"path": str(file)}})
    body = body_of(make_levels(1))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        start = time.monotonic()
        calls = [pool.submit(client.post, f"{url}/v1/score", content=body, headers=JSON) for _ in range(4)]
        assert [call.result().status_code for call in calls] == [200] * 4
    assert events_of(server)["MOST"] == [1] and time.monotonic() - start >= 0.2


def test_a_body_is_let_go_of_while_its_request_waits(start_server, body: bytes) -> None:
    """The samples hold its parts; requests in flight would hold all of them twice."""
    _, server = start_server("pixel")
    data = bytearray(body)
    assert server._scored(server._service, data).status_code == 200
    assert data == b""
