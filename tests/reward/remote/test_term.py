# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reward.remote.conftest import within
from tests.reward.remote.faults import (
    HEALTH,
    FaultServer,
    answer,
    cut,
    flood,
    free_port,
    good,
    lie,
    records,
    reply,
    vanish,
)
from verl_uae.errors import ConfigError
from verl_uae.reward import RewardBatch, RewardScorer, Status, TermSpec
from verl_uae.reward.remote.term import RemoteReward
from verl_uae.reward.scorer import check_specs

ROOT = Path(__file__).resolve().parents[3]
#: Where lateness is wanted, and where it is not, seconds.
TIMEOUT_S, AMPLE_S = 0.5, 20.0
TERMS = [{"name": "pixel", "weight": 0.8}, {"name": "ssim", "weight": 0.2}, {"name": "psnr", "held_out": True}]


def scorer(url: object, timeout_s: float = AMPLE_S, **params: object) -> RewardScorer:
    return RewardScorer([("remote", 1.0, {"url": url, "timeout_s": timeout_s, **params})], timeout_s=30.0)


# ---------------------------------------------------------------- agreement


def test_values_are_those_of_local_scoring_to_the_last_bit(make_levels, start_server) -> None:
    url, _ = start_server(TERMS)
    batch = make_levels(37, size=24)
    local = RewardScorer([("pixel", 0.8, {}), ("ssim", 0.2, {})], held_out=[("psnr", {})]).score(batch)
    remote = scorer(url, batch_size=16).score(batch)
    assert all(record.ok for record in local)
    assert [record.value for record in remote] == [record.value for record in local]
    for here, there in zip(local, remote, strict=True):
        assert {f"remote/{label}": value for label, value in here.terms.items()} == {
            label: value for label, value in there.terms.items() if label != "remote"
        }


def test_networks_agree_to_the_last_bit_also_beside_a_bad_sample(make_levels, start_server, tiny_clip: Path) -> None:
    """Samples keep their place in the server's chunk, wherever others are missing."""
    entry = {"name": "clip", "params": {"model": str(tiny_clip), "mode": "maps"}}
    url, _ = start_server(entry)
    batch = make_levels(19)
    batch.reconstruction_B3HW[[0, 17]] = math.nan
    local = RewardScorer([("clip", 1.0, entry["params"])]).score(batch)
    remote = scorer(url).score(batch)
    assert [record.value for record in remote] == [record.value for record in local]
    assert [record.status for record in remote].count(Status.INVALID) == 2


def test_samples_keep_their_place_where_others_are_missing(make_levels) -> None:
    places: list[list[int]] = []

    def tell(body):
        places.append([sample["place"] for sample in body["samples"]])
        return answer(records(body))

    batch = make_levels(19)
    batch.reconstruction_B3HW[[0, 5, 17]] = math.nan
    with FaultServer(lie(tell)) as server:
        found = scorer(server.url, batch_size=8, concurrency=1).score(batch)
    assert [index for index, record in enumerate(found) if not record.ok] == [0, 5, 17]
    assert places == [[1, 2, 3, 4, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 2]]


def test_reconstructions_are_scored_after_rounding_to_8_bits(make_batch, start_server) -> None:
    url, _ = start_server("pixel")
    batch = make_batch(3)
    rounded = [(images * 255).round() / 255.0 for images in (batch.source_B3HW, batch.reconstruction_B3HW)]
    expected = RewardScorer([("pixel", 1.0, {})]).score(RewardBatch(*rounded))
    found = scorer(url).score(batch)
    assert [record.value for record in found] == [record.value for record in expected]


def test_a_custom_function_sees_what_it_sees_locally(make_levels, start_server, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    pixel = extra_info['source_image'].getpixel((0, 0))[0]\n"
        "    assert data_source == 'test' and solution_str == extra_info['caption']\n"
        "    index = int(solution_str.split()[1])\n"
        "    if index == 2:\n"
        "        raise KeyError('no such thing')\n"
        "    return {'score': pixel + 1000 * ground_truth + 0.25 * (index == extra_info['index']), 'words': 2}\n"
    )
    url, _ = start_server({"name": "custom", "params": {"path": str(file)}})
    batch = make_levels(4)
    local = RewardScorer([("custom", 1.0, {"path": str(file)})]).score(batch)
    remote = scorer(url, batch_size=3).score(batch)
    assert [record.value for record in remote] == [record.value for record in local]
    where = f"({file}, line 6)"
    assert remote[2].status == Status.ERROR
    assert remote[2].reason == f"remote: custom: raised KeyError: 'no such thing' {where}"
    assert remote[0].terms["remote/custom/words"] == 2.0


def test_floor_and_held_out_and_label(make_levels, start_server) -> None:
    url, _ = start_server("pixel")
    batch = make_levels(4)
    values = [record.value for record in RewardScorer([("pixel", 1.0, {})]).score(batch)]
    floor = sorted(values)[2]
    params = {"url": url, "timeout_s": 20.0}
    gated = TermSpec(name="remote", label="far", params=params, floor=floor)
    found = RewardScorer([gated], held_out=[TermSpec(name="remote", label="watched", params=params)]).score(batch)
    assert [record.ok for record in found] == [value >= floor for value in values]
    passed = [record for record in found if record.ok]
    assert all(set(record.terms) == {"far", "far/pixel", "watched", "watched/pixel"} for record in passed)


def test_only_what_is_named_is_sent_and_a_server_that_needs_more_is_refused(make_levels, start_server) -> None:
    with FaultServer(lie(lambda body: answer(records(body, terms=dict.fromkeys(body["samples"][0], 1))))) as server:
        term = scorer(server.url, send=["source", "caption"])
        batch = make_levels(2)
        found = term.score(RewardBatch(batch.source_B3HW, batch.reconstruction_B3HW, captions=["a", "b"]))
        assert {label.partition("/")[2] for label in found[0].terms} - {""} == {"id", "place", "source", "caption"}
    url, _ = start_server("pixel")
    with pytest.raises(ConfigError, match="needs reconstruction, which is not among what is sent"):
        scorer(url, send=["source"])


def test_bounds_are_the_servers_unless_given(make_levels, start_server) -> None:
    url, _ = start_server(TERMS)
    term = RemoteReward(url)
    assert scorer(url).bounds == (0.8 * 0 - 0.2, 0.8 + 0.2) and term.bounds == (-math.inf, math.inf)
    assert scorer(url, bounds=[0, 2]).bounds == (0.0, 2.0)
    found = scorer(url, bounds=[1.5, 2]).score(make_levels(1))[0]
    assert found.status == Status.INVALID and "outside its bounds [1.5, 2]" in found.reason


# ---------------------------------------------------------------- faults

HTML = "<!doctype html><html><body>Bad gateway</body></html>"
LIES = {
    "one record too few": lie(lambda body: answer(records(body)[1:])),
    "one record too many": lie(lambda body: answer([*records(body), *records(body)[:1]])),
    "duplicate ids": lie(lambda body: answer([records(body)[0]] * len(body["samples"]))),
    "foreign ids": lie(lambda body: answer(records(body, id="elsewhere"))),
    "NaN": lie(lambda body: answer(records(body, value=math.nan))),
    "infinity": lie(lambda body: answer(records(body, value=-math.inf))),
    "overflow": lie(lambda body: answer(records(body)).replace("0.5", "1e999")),
    "huge integer": lie(lambda body: answer(records(body, value=10**400))),
    "text": lie(lambda body: answer(records(body, value="0.5"))),
    "boolean": lie(lambda body: answer(records(body, value=True))),
    "null": lie(lambda body: answer(records(body, value=None))),
    "out of bounds": lie(lambda body: answer(records(body, value=1.5))),
    "unknown status": lie(lambda body: answer(records(body, status="fine"))),
    "value of a failure": lie(lambda body: answer(records(body, status="error", reason="no"))),
    "terms of text": lie(lambda body: answer(records(body, terms={"t": "1"}))),
    "label that breaks a metric": lie(lambda body: answer(records(body, terms={"a\nb": 1}))),
    "a name twice": lie(lambda body: answer(records(body)).replace('"status"', '"value": 1, "status"')),
    "another version": lie(lambda body: answer(records(body), version=2)),
    "another reward": lie(lambda body: answer(records(body), fingerprint="g")),
    "list": reply("[]"),
    "truncated JSON": lie(lambda body: answer(records(body))[:-9]),
    "not UTF-8": reply(b'{"version": 1, "records": "\xff"}'),
    "deep": reply("[" * 100_000),
    "HTML": reply(HTML, kind="text/html"),
    "HTML as JSON": reply(HTML),
    "wrong content type": lambda connection, body: reply(answer(records(body)), kind="text/plain")(connection, body),
    "said to be compressed": lambda connection, body: reply(
        answer(records(body)), "200 OK", "application/json", "Content-Encoding: gzip"
    )(connection, body),
    "empty": reply(""),
    "huge body": flood,
    "huge length": lambda connection, body: connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{"
    ),
    "redirect": reply("", "302 Found", "text/html", "Location: http://127.0.0.1:1/v1/score"),
    "no content": reply("", "204 No Content"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_invalid_and_not_asked_again(make_levels, name: str) -> None:
    with FaultServer(LIES[name]) as server:
        term = scorer(server.url, max_answer_mib=1)
        with within(AMPLE_S + 1.0):
            found = term.score(make_levels(3))
        assert [record.status for record in found] == [Status.INVALID] * 3, found[0].reason
        assert all(record.value is None and record.reason.startswith("remote: ") for record in found)
        assert len(server.heads) == 1


@pytest.mark.parametrize("name", ["huge body", "huge length"])
def test_an_answer_is_read_up_to_its_limit_only(make_levels, name: str) -> None:
    with FaultServer(LIES[name]) as server:
        found = scorer(server.url, max_answer_mib=1).score(make_levels(1))[0]
    assert found.reason.endswith("answered with more than 1048576 bytes")


def test_one_bad_record_costs_one_sample(make_levels) -> None:
    def tell(body):
        found = records(body)
        found[1]["value"] = "high"
        found[2] = {"id": found[2]["id"], "status": "timeout", "value": None, "reason": "clip:\n no answer"}
        return answer(reversed(found))

    with FaultServer(lie(tell)) as server:
        found = scorer(server.url).score(make_levels(4))
    assert [record.status for record in found] == ["ok", "invalid", "timeout", "ok"]
    assert found[2].reason == "remote: clip: no answer" and found[0].value == 0.5


@pytest.mark.parametrize("behaviour", ["hang", "drip", "drip_head"])
def test_a_late_answer_is_a_timeout(make_levels, behaviour: str) -> None:
    with FaultServer() as server:
        server.behaviours = (getattr(server, behaviour),)
        term = scorer(server.url, TIMEOUT_S)
        with within(TIMEOUT_S + 1.0):
            found = term.score(make_levels(3))
        assert [record.status for record in found] == [Status.TIMEOUT] * 3
        assert found[0].reason == "remote: no answer within 0.5 s"


def test_late_chunks_do_not_take_the_others_with_them(make_levels) -> None:
    with FaultServer() as server:
        server.behaviours = (good, server.hang, good)
        term = scorer(server.url, 2.0, batch_size=2, concurrency=1, retries=0)
        with within(2.0 + 1.0):
            found = term.score(make_levels(6))
    assert [record.status for record in found] == ["ok", "ok", *["timeout"] * 4]


def test_connection_refused(make_levels) -> None:
    term = scorer(f"http://127.0.0.1:{free_port()}", 5.0)
    with within(5.0 + 1.0):
        found = term.score(make_levels(3))
    assert [record.status for record in found] == [Status.ERROR] * 3
    assert "ConnectError" in found[0].reason


REFUSALS = {
    "400 Bad Request": 1,
    "401 Unauthorized": 1,
    "404 Not Found": 1,
    "413 Content Too Large": 1,
    "500 Internal Server Error": 1,
    "429 Too Many Requests": 3,
    "502 Bad Gateway": 3,
    "503 Service Unavailable": 3,
    "504 Gateway Timeout": 3,
}


@pytest.mark.parametrize("status", REFUSALS)
def test_refusals_are_errors_and_only_some_are_asked_again(make_levels, status: str) -> None:
    with FaultServer(reply('{"error": "not today"}', status)) as server:
        with within(AMPLE_S + 1.0):
            found = scorer(server.url, retries=2).score(make_levels(2))
        assert [record.status for record in found] == [Status.ERROR] * 2
        assert f"HTTP {status[:3]}" in found[0].reason and "not today" in found[0].reason
        assert len(server.heads) == REFUSALS[status]


@pytest.mark.parametrize("behaviour", [cut, vanish])
def test_a_broken_connection_is_tried_again(make_levels, behaviour) -> None:
    with FaultServer(behaviour, behaviour, good) as server, within(AMPLE_S + 1.0):
        assert [record.ok for record in scorer(server.url).score(make_levels(2))] == [True, True]
        assert len(server.heads) == 3
    with FaultServer(behaviour) as server, within(AMPLE_S + 1.0):
        found = scorer(server.url, retries=1).score(make_levels(2))
        assert [record.status for record in found] == [Status.ERROR] * 2
        assert len(server.heads) == 2


def test_a_row_that_cannot_be_sent_costs_its_sample(make_levels) -> None:
    batch = make_levels(4)
    batch.rows[1]["extra_info"]["picture"] = object()
    batch.rows[2]["ground_truth"] = math.nan
    batch.rows[3]["extra_info"] = {"size": torch.tensor([1, 2]).numpy(), "pair": (1, 2)}
    with FaultServer(good) as server:
        found = scorer(server.url).score(batch)
        assert [record.status for record in found] == ["ok", "invalid", "invalid", "ok"]
        assert len(server.heads) == 1
        assert scorer(server.url).score(batch.take([1, 2]))[0].status == Status.INVALID
        assert len(server.heads) == 1
    assert "extra_info.picture is a object" in found[1].reason and "ground_truth is nan" in found[2].reason


# ---------------------------------------------------------------- start


def test_a_server_that_says_no_is_refused_at_the_start(start_server, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = start_server("pixel", token="0123456789abcdef", max_samples=8)
    monkeypatch.setenv("VERL_UAE_REWARD_TOKEN", "fedcba9876543210")
    with pytest.raises(ConfigError, match="HTTP 401") as raised:
        scorer(url)
    assert "fedcba9876543210" not in str(raised.value)
    monkeypatch.setenv("VERL_UAE_REWARD_TOKEN", "0123456789abcdef")
    with pytest.raises(ConfigError, match="batch_size 16 is above the server's limit of 8"):
        scorer(url)
    with pytest.raises(ConfigError, match="not the one set, 'other'"):
        scorer(url, batch_size=8, fingerprint="other")
    with pytest.raises(ConfigError, match="HTTP 404"):
        scorer(f"{url}/elsewhere")
    scorer(url, batch_size=8)


def test_a_server_may_come_later(make_levels, caplog: pytest.LogCaptureFixture) -> None:
    with FaultServer(good, health={"version": 1, "status": "loading"} | {"needs": []}) as server:
        server.health = {**HEALTH, "status": "loading"}
        term = scorer(server.url)
        assert "no reward server answers yet" in caplog.text
        assert term.score(make_levels(1))[0].status == Status.ERROR
        server.health = HEALTH
        assert term.score(make_levels(1))[0].value == 0.5
        assert term.bounds == (0.0, 1.0)


def test_a_timeout_that_is_not_below_the_scorers_is_refused() -> None:
    spec = TermSpec(name="remote", params={"url": "http://127.0.0.1:1", "timeout_s": 60})
    for timeout_s in (60.0, 20.0):
        with pytest.raises(ConfigError, match=r"params\.timeout_s: is 60 s and must be below the scorer's"):
            check_specs([spec], [], timeout_s=timeout_s)
        with pytest.raises(ConfigError, match="must be below the scorer's"):
            RewardScorer([spec], timeout_s=timeout_s)
    check_specs([spec], [], timeout_s=61.0)


@pytest.mark.parametrize(
    "params",
    [
        {"url": "127.0.0.1:8900"},
        {"url": "ftp://host"},
        {"url": "http://"},
        {"url": "http://user:secret@host"},
        {"url": "http://host:99999"},
        {"url": "http://host?token=1"},
        {"url": "http://host\x01"},
        {"url": []},
        {"url": ["http://host", "http://host"]},
        {"timeout_s": 0},
        {"timeout_s": math.inf},
        {"timeout_s": "10"},
        {"send": ["sound"]},
        {"send": "source"},
        {"send": []},
        {"bounds": [1, 0]},
        {"bounds": 1},
        {"batch_size": 0},
        {"concurrency": 1.5},
        {"retries": -1},
        {"max_answer_mib": -1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name_without_a_server(params: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"key\.{next(iter(params))}") as raised:
        RemoteReward(**{"url": "http://127.0.0.1:1", "key": "key", **params})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["breaker_failures", "breaker_cooldown_s"])
def test_parameters_that_there_were_are_refused_by_name(name: str) -> None:
    spec = TermSpec(name="remote", params={"url": "http://127.0.0.1:1", name: 5})
    with pytest.raises(ConfigError, match=rf"params\.{name}: is gone: a dead server costs timeout_s") as raised:
        check_specs([spec], [], timeout_s=60.0)
    assert "\n" not in str(raised.value)


def test_a_certificate_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        scorer("https://127.0.0.1:1", ca_file=str(tmp_path / "none.pem"))


# ---------------------------------------------------------------- several servers, secrets


def test_several_servers_share_the_work_and_one_may_be_down(make_levels) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    with FaultServer(good) as one, FaultServer(good) as two:
        term = scorer([one.url, down, two.url], batch_size=1, retries=2)
        found = term.score(make_levels(12))
        assert all(record.ok for record in found)
        assert len(one.heads) + len(two.heads) == 12 and one.heads and two.heads


def test_servers_must_be_of_one_fingerprint() -> None:
    other = FaultServer(good, health={**HEALTH, "fingerprint": "g"})
    match = "fingerprint is 'g', not the one at the start, 'f'"
    with FaultServer(good) as one, other as two, pytest.raises(ConfigError, match=match):
        scorer([one.url, two.url])


def test_a_proxy_of_the_environment_is_not_used(make_levels, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with FaultServer(good) as server:
        assert scorer(server.url).score(make_levels(1))[0].ok


def test_the_token_is_sent_and_shown_nowhere(
    make_levels, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    token = "a-secret-of-the-operator"
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    echo = reply(f"Authorization: Bearer {token}", "500 Internal Server Error", "text/plain")

    def no_http(connection, body):
        connection.sendall(f"Bearer {token}\r\n\r\n".encode())

    phrase = reply("{}", f"500 no entry for {token}", "text/plain", f"Location: http://{token}@host/?{token}")
    moved = reply(
        "{}", f"302 {token}", f"text/{token}", f"Location: http://{token}@host/?{token}", f"Retry-After: {token}"
    )

    with caplog.at_level(logging.INFO), FaultServer(phrase, moved) as server:
        term = scorer(server.url, token_file=str(file), retries=0)
        said = [record.reason for _ in range(2) for record in term.score(make_levels(1))]
    assert "HTTP 500" in said[0] and "HTTP 302" in said[1] and token not in " ".join(said) + caplog.text
    assert "POST" in caplog.text and "Internal Server Error" in caplog.text, "httpx logged it"
    with caplog.at_level(logging.DEBUG), FaultServer(echo, vanish, no_http) as server:
        term = scorer(server.url, token_file=str(file), retries=0)
        found = [record.reason for _ in range(2) for record in term.score(make_levels(1))]
        # At DEBUG httpcore itself logs what it could not read.
        with caplog.at_level(logging.INFO):
            found += [record.reason for record in term.score(make_levels(1))]
    assert all(f"authorization: bearer {token}" in head.lower() for head in server.heads) and len(server.heads) == 3
    assert "Bearer ***" in found[0] and "Bearer ***" in found[2]
    shown = capfd.readouterr()
    assert token not in " ".join(found) + caplog.text + shown.out + shown.err + repr(vars(term._summed[0].term))


def test_equal_pictures_are_encoded_once(make_levels, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl_uae.reward.remote import term as module

    batch = make_levels(8)
    batch.source_B3HW[:] = batch.source_B3HW[:1].clone()
    encoded: list[int] = []
    encode: Callable[..., str] = module.encode_picture
    monkeypatch.setattr(module, "encode_picture", lambda levels: encoded.append(1) or encode(levels))
    with FaultServer(good) as server:
        assert all(record.ok for record in scorer(server.url).score(batch))
    assert len(encoded) == 1 + 8
