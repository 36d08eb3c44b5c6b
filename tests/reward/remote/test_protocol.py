# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.reward.remote.faults import HEALTH
from verl_uae.errors import ConfigError
from verl_uae.reward import RewardRecord, Status
from verl_uae.reward.remote.protocol import (
    MAX_VALUES,
    MEMBERS,
    TOKEN_VARIABLE,
    answer_message,
    bounds_message,
    parse_answer,
    parse_health,
    parse_request,
    read_token,
    request_message,
)
from verl_uae.reward.remote.wire import ProtocolError

TOKEN = "0123456789abcdef"


def test_a_request_comes_back() -> None:
    data = request_message([{"id": "a", "place": 3, "caption": "x"}, {"id": "b", "place": 0, "source": "s", "row": {}}])
    first, second = parse_request(data, 4)
    assert (first.id, first.place, first.members) == ("a", 3, {"caption": "x"})
    assert (second.id, second.place, second.members) == ("b", 0, {"source": "s", "row": {}})


def test_places_are_those_of_the_list_by_default_and_unknown_members_are_ignored() -> None:
    data = json.dumps({"version": 1, "future": 1, "samples": [{"id": "a", "sound": "x"}, {"id": "b"}]}).encode()
    assert [(sample.place, sample.members) for sample in parse_request(data, 2)] == [(0, {}), (1, {})]


@pytest.mark.parametrize("value", ["[]", "{}", "0", '{"a":0}'])
def test_a_request_of_very_many_values_is_refused_before_it_is_read(value: str) -> None:
    """128 MiB of `[],` would be 3 GiB of lists."""
    count = MAX_VALUES // (1 + value.count("{") + value.count("["))
    for number, good in ((count - 10, True), (count + 10, False)):
        data = b'{"version":1,"samples":[{"id":"a","row":{"x":[%s]}}]}' % ",".join([value] * number).encode()
        if good:
            assert len(parse_request(data, 4)) == 1
            continue
        with pytest.raises(ProtocolError, match=f"values, limit {MAX_VALUES}: send fewer samples"):
            parse_request(data, 4)


def test_the_file_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None, "key") is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    assert read_token(None, "key") == "from-the-environment"
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    assert read_token(tmp_path / "token", "key") == TOKEN


@pytest.mark.parametrize("text", ["", "short", "two words of a token", "line\nbreak-in-a-token", "ümlaut-in-a-token"])
def test_what_is_no_token_is_refused_without_showing_it(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(text)
    monkeypatch.setenv(TOKEN_VARIABLE, text)
    for file, key in ((tmp_path / "token", "key"), (None, TOKEN_VARIABLE)):
        with pytest.raises(ConfigError, match="a token is one word") as raised:
            read_token(file, "key")
        assert raised.value.key == key and (not text or text not in str(raised.value))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_token(tmp_path / "none", "key")


def request(*samples: object, **changes: object) -> bytes:
    return json.dumps({"version": 1, "samples": list(samples), **changes}).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[]", "the request must be an object"),
        (b"{", "not JSON"),
        (request({"id": "a"}, version=2), "protocol version"),
        (request({"id": "a"}, version=True), "protocol version"),
        (request(), "not empty"),
        (request(samples={"id": "a"}), "must be a list"),
        (request(*({"id": str(i)} for i in range(5))), "5 samples, limit 4"),
        (request("a"), r"samples\[0\] must be an object"),
        (request({"id": 1}), r"samples\[0\]\.id"),
        (request({}), r"samples\[0\]\.id"),
        (request({"id": ""}), r"samples\[0\]\.id"),
        (request({"id": "a" * 65}), r"samples\[0\]\.id"),
        (request({"id": "a"}, {"id": "a"}), "two samples have one id"),
        (request({"id": "a", "place": 1}, {"id": "b"}), "two samples have one place"),
        (request({"id": "a", "place": 4}), "integer of 0 to 3"),
        (request({"id": "a", "place": -1}), "integer of 0 to 3"),
        (request({"id": "a", "place": True}), "integer of 0 to 3"),
        (request({"id": "a", "place": 1.0}), "integer of 0 to 3"),
    ],
)
def test_a_wrong_frame_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        parse_request(data, 4)


def test_records_come_back_to_the_last_bit() -> None:
    sent = {
        "a": RewardRecord(0.1 + 0.2, Status.OK, {"clip": 1 / 3, "custom/words": 2.0}),
        "b": RewardRecord.failed(Status.TIMEOUT, "too late"),
        "c": RewardRecord.failed(Status.INVALID, "no \x00 picture"),
    }
    found = parse_answer(answer_message("f", sent), ["c", "a", "b"], (0.0, 1.0), seconds=0.5)
    assert found.fingerprint == "f"
    assert found.records["a"] == RewardRecord(0.1 + 0.2, Status.OK, {"clip": 1 / 3, "custom/words": 2.0}, 0.5)
    assert found.records["b"] == RewardRecord.failed(Status.TIMEOUT, "remote: too late", 0.5)
    assert found.records["c"].reason == "remote: no \x00 picture"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"status": "error"}, "the server gave no reason"),
        ({"status": "error", "reason": 5}, "the server gave no reason"),
        ({"status": "error", "reason": "x" * 1000}, "x{300}$"),
        ({"status": "error", "reason": "a\n\n b"}, "remote: a b"),
    ],
)
def test_a_reason_is_one_short_line(record: dict[str, object], reason: str) -> None:
    data = json.dumps({"version": 1, "fingerprint": "f", "records": [{"id": "a", "value": None, **record}]}).encode()
    found = parse_answer(data, ["a"], (0.0, 1.0)).records["a"]
    assert found.status == Status.ERROR
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.reason)


def test_a_value_past_its_bound_by_rounding_is_that_bound() -> None:
    data = answer_message("f", {"a": RewardRecord(1.0 + 1e-8, Status.OK)})
    assert parse_answer(data, ["a"], (0.0, 1.0)).records["a"].value == 1.0
    assert parse_answer(data, ["a"], (-math.inf, math.inf)).records["a"].value == 1.0 + 1e-8


def test_too_many_terms() -> None:
    data = answer_message("f", {"a": RewardRecord(0.5, Status.OK, {f"t{index}": 0.0 for index in range(65)})})
    assert parse_answer(data, ["a"], (0.0, 1.0)).records["a"].status == Status.INVALID


def test_the_documented_messages_are_messages() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "remote_rewards.md").read_text(encoding="utf-8")
    request_text, answer_text, health_text = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (sample,) = parse_request(request_text.encode(), 64)
    assert set(sample.members) == set(MEMBERS) and (sample.id, sample.place) == ("0", 0)
    health = parse_health(health_text.encode())
    found = parse_answer(answer_text.encode(), ["0", "1"], health.bounds)
    assert health.ready and found.fingerprint == health.fingerprint
    assert [record.status for record in found.records.values()] == ["ok", "invalid"]


def test_health() -> None:
    health = parse_health(json.dumps({**HEALTH, "bounds": [None, 2], "status": "loading", "more": 1}).encode())
    assert (health.ready, health.fingerprint, health.bounds) == (False, "f", (-math.inf, 2.0))
    assert (health.needs, health.max_samples) == (frozenset({"source"}), 64)
    assert bounds_message((-math.inf, 2.0)) == [None, 2.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"status": "fine"},
        {"fingerprint": ""},
        {"fingerprint": None},
        {"bounds": [1, 0]},
        {"bounds": [True, 2]},
        {"bounds": [0]},
        {"bounds": None},
        {"needs": ["sound"]},
        {"needs": "source"},
        {"limits": {}},
        {"limits": {"max_samples": 0}},
        {"limits": {"max_samples": True}},
        {"limits": []},
    ],
    ids=str,
)
def test_a_server_of_another_kind_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=next(iter(changes))):
        parse_health(json.dumps({**HEALTH, **changes}).encode())
