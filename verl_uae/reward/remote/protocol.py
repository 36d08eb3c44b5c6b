# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The messages of protocol version 1: a batch of samples, their records, and what a server says about itself.

docs/remote_rewards.md describes them for servers in other languages.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_uae.errors import ConfigError
from verl_uae.paths import expand
from verl_uae.reward.outcome import as_record, describe
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.reward.remote.wire import ProtocolError, dumps, loads

VERSION = 1
SCORE_PATH, HEALTH_PATH, METRICS_PATH = "/v1/score", "/health", "/metrics"
JSON_TYPE = "application/json"

#: Where the bearer token stands if no file is named.
TOKEN_VARIABLE = "VERL_UAE_REWARD_TOKEN"

#: Shortest token accepted, characters: `openssl rand -hex 32` writes 64. Its characters are those of RFC 6750, 2.1.
MIN_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")

#: What a sample may carry, by the names of a term's ``needs``.
MEMBERS = ("source", "reconstruction", "caption", "row")

#: Most terms in one record, and the shape of their labels: they become names of metrics.
MAX_TERMS = 64
_TERM_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")
_MAX_ID, _MAX_REASON, _MAX_FINGERPRINT = 64, 300, 128

#: Most values in a request. A value of 3 bytes, `[],`, takes 64 as an object of Python; text takes its length.
MAX_VALUES = 2**19

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RawSample:
    """One sample of a request, its members not yet looked at."""

    id: str
    place: int
    """Position in the batch; see :func:`parse_request`."""
    members: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer to a batch."""

    fingerprint: str
    records: Mapping[str, RewardRecord]
    """By id, one for every sample that was sent."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a server says about itself."""

    ready: bool
    fingerprint: str
    """Changes when the server would score otherwise: other terms, weights or files."""
    bounds: Bounds
    needs: frozenset[str]
    """Members of :data:`MEMBERS` that every sample must carry."""
    max_samples: int
    """Most samples in one request."""


# ---------------------------------------------------------------- token


def read_token(file: str | os.PathLike[str] | None, key: str) -> str | None:
    """The token of a file, else of the environment, else None.

    Args:
        file: text file that holds nothing but the token; None: look into ``VERL_UAE_REWARD_TOKEN``.
        key: configuration key of the file, for errors.

    Raises:
        ConfigError: where the file cannot be read, or what is found is no token. The token is not in the message.
    """
    if file is None:
        text, key = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if text is None:
            return None
    else:
        try:
            text = expand(file).read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(key, f"cannot read {os.fspath(file)!r}: {type(error).__name__}") from error
    token = text.strip()
    if len(token) < MIN_TOKEN or not _TOKEN.fullmatch(token):
        raise ConfigError(key, f"a token is one word of at least {MIN_TOKEN} letters, digits or -._~+/")
    return token


# ---------------------------------------------------------------- requests


def request_message(samples: Sequence[Mapping[str, object]]) -> bytes:
    """A request; a sample is ``{"id", "place", members...}``."""
    return dumps({"version": VERSION, "samples": list(samples)})


def parse_request(data: bytes | bytearray, max_samples: int) -> list[RawSample]:
    """Read a request, leaving the members of a sample for later: a bad one costs that sample only.

    ``place`` says where in its batch a sample stands. Floating-point kernels round by shape and place, so a server
    that keeps samples at their places gives each the same bits with and without its neighbours.

    Raises:
        ProtocolError: where the frame is wrong, so that no sample could be told from another, or there are more than
            :data:`MAX_VALUES` values.
    """
    # Every value follows one of these, or stands first in a list or object; in a text they count too.
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > MAX_VALUES:
        raise ProtocolError(f"{values} values, limit {MAX_VALUES}: send fewer samples, or shorter rows")
    message = _object(loads(data), "the request")
    _check_version(message)
    raw = message.get("samples")
    if not isinstance(raw, list) or not raw:
        raise ProtocolError("samples must be a list that is not empty")
    if len(raw) > max_samples:
        raise ProtocolError(f"{len(raw)} samples, limit {max_samples}")
    samples = [_raw_sample(entry, index, max_samples) for index, entry in enumerate(raw)]
    for name in ("id", "place"):
        if len({getattr(sample, name) for sample in samples}) != len(samples):
            raise ProtocolError(f"two samples have one {name}")
    return samples


def _raw_sample(entry: object, index: int, max_samples: int) -> RawSample:
    sample = _object(entry, f"samples[{index}]")
    identifier, place = sample.get("id"), sample.get("place", index)
    if not isinstance(identifier, str) or not 0 < len(identifier) <= _MAX_ID:
        raise ProtocolError(f"samples[{index}].id must be a text of 1 to {_MAX_ID} characters")
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < max_samples:
        raise ProtocolError(f"samples[{index}].place must be an integer of 0 to {max_samples - 1}")
    return RawSample(identifier, place, {name: sample[name] for name in MEMBERS if name in sample})


# ---------------------------------------------------------------- answers


def answer_message(fingerprint: str, records: Mapping[str, RewardRecord]) -> bytes:
    """The answer to a request, records by id."""
    return dumps(
        {
            "version": VERSION,
            "fingerprint": fingerprint,
            "records": [{"id": identifier, **_record_message(record)} for identifier, record in records.items()],
        }
    )


def _record_message(record: RewardRecord) -> dict[str, object]:
    message: dict[str, object] = {"status": str(record.status), "value": record.value, "terms": dict(record.terms)}
    if not record.ok:
        message["reason"] = record.reason
    return message


def parse_answer(
    data: bytes, ids: Sequence[str], bounds: Bounds, seconds: float = 0.0, label: str = "remote"
) -> Answer:
    """Read an answer that may lie.

    A frame that is wrong (not JSON, another number of records, an id that is foreign or comes twice) spoils the whole
    answer, since then no record can be trusted to be of its sample. A record that is wrong becomes INVALID alone.

    Args:
        data: body of the answer.
        ids: what was sent.
        bounds: smallest and largest value that is believed.
        seconds: written into every record.
        label: of the term, for reasons.

    Raises:
        ProtocolError: for a wrong frame.
    """
    message = _object(loads(data), "the answer")
    _check_version(message)
    raw = message.get("records")
    if not isinstance(raw, list) or len(raw) != len(ids):
        count = len(raw) if isinstance(raw, list) else "no"
        raise ProtocolError(f"{count} records for {len(ids)} samples")
    wanted, records = set(ids), {}
    for index, entry in enumerate(raw):
        record = _object(entry, f"records[{index}]")
        identifier = record.get("id")
        if not isinstance(identifier, str) or identifier not in wanted:
            raise ProtocolError(f"records[{index}] has the id {describe(identifier)}, which was not sent")
        if identifier in records:
            raise ProtocolError(f"two records have the id {identifier!r}")
        records[identifier] = _record(record, bounds, seconds, label)
    return Answer(_fingerprint(message), records)


def _record(message: Mapping[str, Any], bounds: Bounds, seconds: float, label: str) -> RewardRecord:
    def invalid(reason: str) -> RewardRecord:
        return RewardRecord.failed(Status.INVALID, f"{label}: {reason}", seconds)

    status, value = message.get("status"), message.get("value")
    if status not in [str(known) for known in Status]:
        return invalid(f"answered with the status {describe(status)}")
    if status != Status.OK:
        if value is not None:
            return invalid(f"answered with the status {status} and a value")
        text = message.get("reason")
        reason = " ".join(text.split())[:_MAX_REASON] if isinstance(text, str) else ""
        return RewardRecord.failed(Status(status), f"{label}: {reason or 'the server gave no reason'}", seconds)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return invalid(f"returned {describe(value)}, not a number")
    scored = as_record(label, value, bounds, seconds)
    terms = _terms(message.get("terms"))
    if terms is None:
        return invalid("answered with terms that are no numbers by label")
    return RewardRecord(scored.value, Status.OK, terms, seconds) if scored.ok else scored


def _terms(raw: object) -> dict[str, float] | None:
    """The parts of a value; None where they are not what they should be."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or len(raw) > MAX_TERMS:
        return None
    found: dict[str, float] = {}
    for name, value in raw.items():
        number = _number(value)
        if number is None or not _TERM_LABEL.fullmatch(name):
            return None
        found[name] = number
    return found


# ---------------------------------------------------------------- health


def parse_health(data: bytes) -> Health:
    """Read what a server says about itself; members that are not named here are for people.

    Raises:
        ProtocolError: where it is no server of this protocol and version.
    """
    message = _object(loads(data), "the answer")
    _check_version(message)
    status, needs, bounds = message.get("status"), message.get("needs"), message.get("bounds")
    if status not in ("ready", "loading", "failed"):
        raise ProtocolError(f"status is {describe(status)}, not ready, loading or failed")
    if not isinstance(needs, list) or not set(map(str, needs)) <= set(MEMBERS):
        raise ProtocolError(f"needs is {describe(needs)}, not a list out of {', '.join(MEMBERS)}")
    limits = _object(message.get("limits", {}), "limits")
    most = limits.get("max_samples")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ProtocolError(f"limits.max_samples is {describe(most)}, not a positive integer")
    return Health(status == "ready", _fingerprint(message), _bounds(bounds), frozenset(map(str, needs)), most)


def bounds_message(bounds: Bounds) -> list[float | None]:
    """Bounds for JSON, which has no infinity: null is unbounded."""
    return [bound if math.isfinite(bound) else None for bound in bounds]


def _bounds(raw: object) -> Bounds:
    if isinstance(raw, list) and len(raw) == 2:
        low = -math.inf if raw[0] is None else _number(raw[0])
        high = math.inf if raw[1] is None else _number(raw[1])
        if low is not None and high is not None and low < high:
            return low, high
    raise ProtocolError(f"bounds are {describe(raw)}, not [low, high] with low < high")


# ---------------------------------------------------------------- parts


def _object(raw: object, name: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ProtocolError(f"{name} must be an object, got {describe(raw)}")
    return raw


def _check_version(message: Mapping[str, object]) -> None:
    version = message.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ProtocolError(f"protocol version is {describe(version)}, this is version {VERSION}")


def _fingerprint(message: Mapping[str, object]) -> str:
    fingerprint = message.get("fingerprint")
    if not isinstance(fingerprint, str) or not 0 < len(fingerprint) <= _MAX_FINGERPRINT:
        raise ProtocolError(f"fingerprint must be a text of 1 to {_MAX_FINGERPRINT} characters")
    return fingerprint


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
