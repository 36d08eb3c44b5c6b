# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.reward.remote.faults import HEALTH
from verl_uae.data.images import to_pil
from verl_uae.data.limits import ImageLimits
from verl_uae.errors import ConfigError
from verl_uae.reward import RewardRecord, Status
from verl_uae.reward.remote.protocol import (
    MAX_VALUES,
    MEMBERS,
    TOKEN_VARIABLE,
    ProtocolError,
    answer_message,
    bounds_message,
    claimed_size,
    decode_picture,
    dumps,
    encode_picture,
    loads,
    parse_answer,
    parse_health,
    parse_request,
    plain,
    read_token,
    request_message,
    to_levels,
)

TOKEN = "0123456789abcdef"
LIMITS = ImageLimits(max_bytes=2**16, max_pixels=64 * 64, min_side=1)


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
        (b"[]", "the message must be an object, got list"),
        (b"{", "not JSON"),
        (request({"id": "a"}, version=2), "version is 2, this is version 1 of the protocol"),
        (request({"id": "a"}, version=True), "version must be a valid number, got bool True"),
        (request(), "samples must have at least 1 item, got list"),
        (request(samples={"id": "a"}), "samples must be a list, got dict"),
        (request(*({"id": str(i)} for i in range(5))), "5 samples, limit 4"),
        (request("a"), r"samples\[0\] must be an object"),
        (request({"id": 1}), r"samples\[0\]\.id"),
        (request({}), r"samples\[0\]\.id is missing"),
        (request({"id": ""}), r"samples\[0\]\.id"),
        (request({"id": "a" * 65}), r"samples\[0\]\.id"),
        (request({"id": "a"}, {"id": "a"}), "two samples have one id"),
        (request({"id": "a", "place": 1}, {"id": "b"}), "two samples have one place"),
        (request({"id": "a", "place": 4}), r"samples\[0\]\.place is 4, must be below 4"),
        (request({"id": "a", "place": -1}), r"samples\[0\]\.place must be greater than or equal to 0, got int -1"),
        (request({"id": "a", "place": True}), "must be a valid integer, got bool True"),
        (request({"id": "a", "place": 1.0}), "must be a valid integer, got float 1.0"),
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
        ({"status": "fine"}, "a record whose status must be 'ok', 'invalid', 'timeout' or 'error', got str 'fine'"),
        ({"value": "0.5"}, "a record whose value must be a valid number, got str '0.5'"),
        ({"terms": {"a\nb": 1}}, "a record whose terms.a\\nb must match pattern"),
        ({"terms": [0.5]}, "a record whose terms must be an object, got list"),
        ({"terms": {"a": math.pi, "b": "1"}}, "a record whose terms.b must be a valid number"),
    ],
)
def test_what_is_wrong_with_a_record_is_named_on_one_line(record: dict[str, object], reason: str) -> None:
    good = {"id": "a", "status": "ok", "value": 0.5}
    data = json.dumps({"version": 1, "fingerprint": "f", "records": [{**good, **record}]}).encode()
    found = parse_answer(data, ["a"], (0.0, 1.0)).records["a"]
    assert found.status == Status.INVALID and found.reason.startswith(f"remote: answered with {reason}")
    assert "\n" not in found.reason


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
    assert health.status == "ready" and found.fingerprint == health.fingerprint
    assert [record.status for record in found.records.values()] == ["ok", "invalid"]


def test_health() -> None:
    health = parse_health(json.dumps({**HEALTH, "bounds": [None, 2], "status": "loading", "more": 1}).encode())
    assert (health.status == "ready", health.fingerprint, health.bounds) == (False, "f", (-math.inf, 2.0))
    assert (health.needs, health.limits.max_samples) == (frozenset({"source"}), 64)
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


# ---------------------------------------------------------------- JSON and pictures


def base64_of(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def png_of(*sizes: tuple[int, int], depth: int = 8, color: int = 2, pixels: bytes = b"") -> str:
    """A PNG file by hand, with a header for each of ``sizes``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    heads = [struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0) for width, height in sizes]
    parts = (*(chunk(b"IHDR", head) for head in heads), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def test_pictures_come_back_exactly() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(decode_picture(encode_picture(levels), LIMITS), levels)
    assert np.array_equal(
        decode_picture(png_of((5, 7), pixels=b"".join(b"\0" + row.tobytes() for row in levels)), LIMITS), levels
    )


def test_levels_are_those_of_a_custom_reward_and_every_level_survives() -> None:
    images = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 1.002 - 0.001
    assert np.array_equal(to_levels(images), np.stack([np.asarray(to_pil(image)) for image in images]))
    every = torch.arange(256, dtype=torch.float32).expand(1, 3, 1, 256) / 255.0
    assert np.array_equal(to_levels(every)[0, 0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (5, "must be base64 text, got int"),
        ("no base64!", "not base64"),
        ("é", "not base64"),
        ("", "empty file"),
        (base64.b64encode(b"GIF89a" + bytes(20)).decode(), "GIF"),
        (base64_of(Image.new("RGB", (8, 8)), "JPEG"), "not a PNG file of 8-bit RGB"),
        (base64_of(Image.new("RGBA", (8, 8))), "not a PNG file of 8-bit RGB"),
        (base64_of(Image.new("L", (8, 8))), "not a PNG file of 8-bit RGB"),
        (base64_of(Image.new("P", (8, 8))), "not a PNG file of 8-bit RGB"),
        (png_of((8, 8), depth=16), "not a PNG file of 8-bit RGB"),
        (png_of((50_000, 50_000)), "50000 x 50000 pixels, limit 4096"),
        (png_of((8, 8), pixels=b"\0" * 10), "truncated"),
        (png_of((8, 8), (16, 4), pixels=bytes(49 * 4)), "its size is not that of its header"),
        (base64_of(Image.new("RGB", (8, 8)))[:60], "base64|truncated|broken|ends|chunk"),
        (base64.b64encode(bytes(2**16 + 1)).decode(), "65537 bytes, limit 65536"),
    ],
)  # fmt: skip
def test_other_pictures_are_refused(text: object, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode_picture(text, LIMITS)


def test_the_claimed_size_is_read_from_the_head_alone() -> None:
    assert claimed_size(png_of((50_000, 7))) == (50_000, 7)
    assert claimed_size(base64_of(Image.new("RGB", (9, 8)))[:36] + "no base64!") == (9, 8)
    assert [claimed_size(text) for text in (None, 5, {}, [], "", "no base64!", "é" * 40, "AAAA")] == [(0, 0)] * 8


def test_json_is_strict() -> None:
    assert loads(dumps({"a": [1, 2.5, None, "\ud83c\udf00é", "\ud800"]})) == {
        "a": [1, 2.5, None, "\U0001f300é", "\ud800"]
    }
    for text in (
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        '{"a": 1, "a": 2}',
        "",
        "{",
        "1 2",
        "[" * 100_000,
        "1" * 5000,
    ):
        with pytest.raises(ProtocolError, match="not JSON"):
            loads(text.encode())
    with pytest.raises(ProtocolError, match="not JSON"):
        loads(b'"\xff"')
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"a": float("nan")})


def test_plain() -> None:
    row = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": (1, "x", None, True),
        4: {"d": np.int64(3), "e": np.bool_(False)},
    }
    assert plain(row, "row") == {"a": 0.5, "b": [0, 1], "c": [1, "x", None, True], "4": {"d": 3, "e": False}}
    for value, name in (
        ({"a": [0, np.nan]}, r"row\.a\[1\] is nan"),
        (b"x", "row is a bytes"),
        ([{1}], r"row\[0\] is a set"),
    ):
        with pytest.raises(ProtocolError, match=name):
            plain(value, "row")
