# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Protocol version 1: what passes between a run and a reward server.

docs/remote_rewards.md describes it for servers in other languages. Messages are strict JSON, pictures in them base64 of
PNG files. Both ends read what somebody else wrote, so all that JSON libraries let through by kindness is refused: NaN
and infinity, numbers that overflow, a name twice in one object, text that is not UTF-8, `true` for 1.

Shape legend: B samples, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from torch import Tensor

from verl_uae.data.images import check_header, decode_image
from verl_uae.data.limits import ImageLimits
from verl_uae.errors import ConfigError, DecodeError
from verl_uae.paths import expand
from verl_uae.reward.record import RewardRecord, Status, as_record, describe
from verl_uae.text import one_line, unique_keys

VERSION = 1
SCORE_PATH, HEALTH_PATH, METRICS_PATH = "/v1/score", "/health", "/metrics"
JSON_TYPE = "application/json"

#: What a sample may carry, by the names of a term's ``needs``.
Member = Literal["source", "reconstruction", "caption", "row"]
MEMBERS: tuple[Member, ...] = get_args(Member)

#: Longest reason of a record, characters, and most terms in one.
_MAX_REASON, MAX_TERMS = 300, 64

#: Most values in a request. A value of 3 bytes, `[],`, takes 64 as an object of Python; text takes its length.
MAX_VALUES = 2**19

#: Where the bearer token stands if no file is named.
TOKEN_VARIABLE = "VERL_UAE_REWARD_TOKEN"

#: Shortest token accepted, characters: `openssl rand -hex 32` writes 64. Its characters are those of RFC 6750, 2.1.
MIN_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")

#: zlib level and strategy (Z_RLE) of pictures on the wire: behind PNG's filters, searching for more only costs time.
PNG_LEVEL, PNG_STRATEGY = 1, 3

#: Size, then bit depth and colour type at their places in a PNG file; those of 8-bit RGB (PNG specification, 11.2.2).
_IHDR_SIZE, _IHDR_FORMAT, _EIGHT_BIT_RGB = struct.Struct(">16xII"), slice(24, 26), bytes((8, 2))

#: Characters of base64 that hold the start of the file up to there.
_HEAD = 36

Message = TypeVar("Message", bound=BaseModel)


class ProtocolError(ValueError):
    """A message that breaks the protocol; the text says where."""


# ---------------------------------------------------------------- messages


class _Message(BaseModel):
    """Members that are not named are ignored, as docs/remote_rewards.md says."""

    model_config = ConfigDict(strict=True, frozen=True)


def _of_this_version(version: float) -> float:
    if version != VERSION:
        raise ValueError(f"is {version:g}, this is version {VERSION} of the protocol")
    return version


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"must be [low, high] with low < high, got {bounds}")
    return bounds


def _or(unbounded: float) -> BeforeValidator:
    return BeforeValidator(lambda bound: unbounded if bound is None else bound)


#: What pydantic names by types of Python.
_NAMES = {
    **dict.fromkeys(("model_type", "dict_type"), "be an object"),
    **dict.fromkeys(("list_type", "tuple_type", "frozen_set_type"), "be a list"),
}

_Version = Annotated[float, AfterValidator(_of_this_version)]
_Fingerprint = Annotated[str, Field(min_length=1, max_length=128)]
#: They become names of metrics.
_TermLabel = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}$")]

#: Smallest and largest value; JSON has no infinity, so null is unbounded.
Bounds = Annotated[
    tuple[Annotated[float, _or(-math.inf)], Annotated[float, _or(math.inf)]], Strict(False), AfterValidator(_ordered)
]


def first_problem(error: ValidationError) -> tuple[str, str]:
    """What a check of pydantic found first: where, as in ``samples[0].id``, and what is wrong there."""
    found = error.errors(include_url=False)[0]
    parts = [part if isinstance(part, int) else one_line(part[:60]) for part in found["loc"] if part != "[key]"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    kind, said = found["type"], found["msg"]
    if kind == "missing":
        return place, "is missing"
    if kind == "value_error":
        # One of ours, which shows of the input what it may.
        return place, str(found["ctx"]["error"])
    wanted = _NAMES.get(kind) or re.sub("^[A-Z][a-z]+ should ", "", said).partition(" after validation")[0]
    return place, f"must {wanted}, got {describe(found['input'])}"


def _read(kind: type[Message], data: bytes | bytearray) -> Message:
    try:
        return kind.model_validate(loads(data))
    except ValidationError as error:
        place, problem = first_problem(error)
        raise ProtocolError(f"{place or 'the message'} {problem}") from error


# ---------------------------------------------------------------- requests


class RawSample(NamedTuple):
    """One sample of a request, its members not yet looked at; ``place`` is its position in the batch."""

    id: str
    place: int
    members: Mapping[str, object]


class _Sample(_Message):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    id: Annotated[str, Field(min_length=1, max_length=64)]
    place: Annotated[int, Field(ge=0)] = -1
    """Below 0 where none is stated."""


class _Request(_Message):
    version: _Version
    samples: Annotated[list[_Sample], Field(min_length=1)]


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
    sent = _read(_Request, data).samples
    if len(sent) > max_samples:
        raise ProtocolError(f"{len(sent)} samples, limit {max_samples}")
    samples = []
    for index, sample in enumerate(sent):
        place = index if sample.place < 0 else sample.place
        if place >= max_samples:
            raise ProtocolError(f"samples[{index}].place is {place}, must be below {max_samples}")
        given = sample.model_extra or {}
        samples.append(RawSample(sample.id, place, {name: given[name] for name in MEMBERS if name in given}))
    for name in ("id", "place"):
        if len({getattr(sample, name) for sample in samples}) != len(samples):
            raise ProtocolError(f"two samples have one {name}")
    return samples


# ---------------------------------------------------------------- answers


class Answer(NamedTuple):
    """A server's answer to a batch: records by id, one for every sample that was sent."""

    fingerprint: str
    records: Mapping[str, RewardRecord]


class _Answer(_Message):
    version: _Version
    fingerprint: _Fingerprint
    records: list[dict[str, Any]]
    """Checked one by one: one that is wrong costs its sample only."""


class _Record(_Message):
    status: Literal["ok", "invalid", "timeout", "error"]
    value: float | None = None
    terms: Annotated[dict[_TermLabel, float], Field(max_length=MAX_TERMS)] | None = None
    reason: Any = None


def answer_message(fingerprint: str, records: Mapping[str, RewardRecord]) -> bytes:
    """The answer to a request, records by id."""
    sent = []
    for identifier, found in records.items():
        record = {"id": identifier, "status": str(found.status), "value": found.value, "terms": dict(found.terms)}
        sent.append(record if found.ok else {**record, "reason": found.reason})
    return dumps({"version": VERSION, "fingerprint": fingerprint, "records": sent})


def parse_answer(
    data: bytes, ids: Sequence[str], bounds: Bounds, seconds: float = 0.0, label: str = "remote"
) -> Answer:
    """Read an answer that may lie.

    A frame that is wrong (not JSON, another number of records, an id that is foreign or comes twice) spoils the whole
    answer, since then no record can be trusted to be of its sample. A record that is wrong becomes INVALID alone.

    Values outside ``bounds`` are not believed; ``seconds`` goes into every record, ``label`` into reasons.

    Raises:
        ProtocolError: for a wrong frame.
    """
    answer = _read(_Answer, data)
    if len(answer.records) != len(ids):
        raise ProtocolError(f"{len(answer.records)} records for {len(ids)} samples")
    wanted, records = set(ids), {}
    for index, entry in enumerate(answer.records):
        identifier = entry.get("id")
        if not isinstance(identifier, str) or identifier not in wanted:
            raise ProtocolError(f"records[{index}] has the id {describe(identifier)}, which was not sent")
        if identifier in records:
            raise ProtocolError(f"two records have the id {identifier!r}")
        records[identifier] = _record(entry, bounds, seconds, label)
    return Answer(answer.fingerprint, records)


def _record(entry: Mapping[str, Any], bounds: Bounds, seconds: float, label: str) -> RewardRecord:
    def invalid(reason: str) -> RewardRecord:
        return RewardRecord.failed(Status.INVALID, f"{label}: {reason}", seconds)

    try:
        record = _Record.model_validate(entry)
    except ValidationError as error:
        return invalid(f"answered with a record whose {' '.join(first_problem(error))}")
    if record.status == "ok":
        scored = as_record(label, record.value, bounds, seconds)
        return RewardRecord(scored.value, Status.OK, record.terms or {}, seconds) if scored.ok else scored
    if record.value is not None:
        return invalid(f"answered with the status {record.status} and a value")
    reason = " ".join(record.reason.split())[:_MAX_REASON] if isinstance(record.reason, str) else ""
    return RewardRecord.failed(Status(record.status), f"{label}: {reason or 'the server gave no reason'}", seconds)


# ---------------------------------------------------------------- health


class _Limits(_Message):
    max_samples: Annotated[int, Field(ge=1)]
    """In one request."""


class Health(_Message):
    """What a server says about itself."""

    version: _Version
    status: Literal["ready", "loading", "failed"]
    fingerprint: _Fingerprint
    """Changes when the server would score otherwise: other terms, weights or files."""
    bounds: Bounds
    needs: Annotated[frozenset[Member], Strict(False)]
    """What every sample must carry."""
    limits: _Limits


def parse_health(data: bytes) -> Health:
    """Read what a server says about itself; ProtocolError where it is none of this protocol and version."""
    return _read(Health, data)


def bounds_message(bounds: Bounds) -> list[float | None]:
    """Bounds for JSON."""
    return [bound if math.isfinite(bound) else None for bound in bounds]


# ---------------------------------------------------------------- JSON


def dumps(value: object) -> bytes:
    """JSON as bytes.

    Raises:
        ValueError: for a number that is not finite.
        TypeError: for what JSON does not know.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes | bytearray) -> Any:
    """Parse JSON strictly.

    Raises:
        ProtocolError: for anything but one JSON value in UTF-8 with finite numbers and unique names.
    """
    try:
        text = data.decode("utf-8")
        return json.loads(text, parse_constant=_number, parse_float=_number, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {str(error)[:120] or type(error).__name__}") from error


def plain(value: object, name: str) -> Any:
    """A value of a data row, called ``name`` in errors, as what JSON knows; NumPy's become Python's.

    Raises:
        ProtocolError: for a number that is not finite, or anything else that JSON cannot carry.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ProtocolError(f"{name} is {value}")
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(inner, f"{name}[{index}]") for index, inner in enumerate(value)]
    raise ProtocolError(f"{name} is a {type(value).__name__}, which JSON cannot carry")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


# ---------------------------------------------------------------- pictures


def to_levels(images_B3HW: Tensor) -> np.ndarray:
    """Pictures in [0, 1] as 8-bit levels (B, H, W, 3), rounded to the nearest."""
    levels = images_B3HW.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def encode_picture(levels_HW3: np.ndarray) -> str:
    """8-bit RGB levels as base64 of a PNG file; lossless."""
    file = io.BytesIO()
    Image.fromarray(levels_HW3, mode="RGB").save(file, "PNG", compress_level=PNG_LEVEL, compress_type=PNG_STRATEGY)
    return base64.b64encode(file.getbuffer()).decode("ascii")


def claimed_size(text: object) -> tuple[int, int]:
    """(width, height) as the head of a picture on the wire says; (0, 0) for what :func:`decode_picture` refuses."""
    try:
        width, height = _IHDR_SIZE.unpack_from(base64.b64decode(text[:_HEAD], validate=True))  # type: ignore[index]
    except (ValueError, TypeError, KeyError, struct.error):
        return 0, 0
    return width, height


def decode_picture(text: object, limits: ImageLimits) -> np.ndarray:
    """Inverse of :func:`encode_picture` for a text from outside: levels (H, W, 3), uint8.

    Raises:
        ProtocolError: for anything but an 8-bit RGB picture within the limits.
    """
    if not isinstance(text, str):
        raise ProtocolError(f"must be base64 text, got {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"not base64: {error}") from error
    try:
        header = check_header(data, limits=limits)
        if header.format != "PNG" or data[_IHDR_FORMAT] != _EIGHT_BIT_RGB:
            raise ProtocolError("not a PNG file of 8-bit RGB")
        levels_HW3 = np.asarray(decode_image(data, limits=limits))
        if levels_HW3.shape[:2] != (header.height, header.width):
            raise ProtocolError("its size is not that of its header")
        return levels_HW3
    except DecodeError as error:
        raise ProtocolError(error.message) from error


# ---------------------------------------------------------------- token


def read_token(file: str | os.PathLike[str] | None, key: str) -> str | None:
    """The token, which is all that a text file holds; without a file that of ``VERL_UAE_REWARD_TOKEN``, else None.

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
