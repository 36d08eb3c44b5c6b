# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A reward that another process computes, as a term.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pydantic import ValidationError

from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch, RewardRecord, Status, as_number
from verl_uae.reward.remote.client import RemoteClient, RemoteSettings, Reply
from verl_uae.reward.remote.protocol import (
    HEALTH_PATH,
    MEMBERS,
    SCORE_PATH,
    Health,
    ProtocolError,
    encode_picture,
    first_problem,
    parse_answer,
    parse_health,
    plain,
    read_token,
    request_message,
    to_levels,
)
from verl_uae.reward.term import RewardTerm, TermContext
from verl_uae.web import Fault, UnansweredError, is_loopback

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 30.0

#: Parameters of the circuit breaker that there was.
GONE = frozenset({"breaker_failures", "breaker_cooldown_s"})

#: Members of a data row that are sent, as a custom reward sees them.
ROW_MEMBERS = ("data_source", "ground_truth", "reward_model", "extra_info")


class RemoteReward(RewardTerm):
    """Asks a reward server (``verl-uae reward-server``, or any that speaks docs/remote_rewards.md).

    Pictures are sent as 8-bit PNG, so a reconstruction is scored after rounding to 8 bits. The value is the server's
    sum, and its terms are recorded as ``<label>/<label on the server>``.

    A call never raises for a sample and ends within ``timeout_s``, retries included: what has not come by then is
    TIMEOUT; refused or broken is ERROR; an answer that cannot be true is INVALID. The
    first answer of a server fixes bounds and fingerprint; an answer with another fingerprint is INVALID, since the
    reward would be another function.

    Args:
        url: base address, or several of servers that score alike.
        timeout_s: seconds for one batch, everything included; below the scorer's timeout.
        send: which parts of a sample are sent; the others stay here.
        bounds: smallest and largest value that is believed; None: what the server states.
        fingerprint: the server's fingerprint, where it must not be any other.
        batch_size: samples in a request. A multiple of the scorer's chunk (16) keeps the last bits of local scoring.
        concurrency: requests in flight.
        retries: further tries of a request after a refused or broken connection, or HTTP 429, 502, 503, 504. A server
            that answers 429 or 503 with ``Retry-After`` is busy, and is asked again until the deadline.
        max_answer_mib: longest answer that is read, MiB.
        token_file: file with the bearer token; None: the variable ``VERL_UAE_REWARD_TOKEN``, if set.
        ca_file: certificates to trust for https instead of the public ones.
        key: configuration key of this term, for errors.

    Raises:
        ConfigError: for impossible settings; in :meth:`setup` also where a server that answers says no, speaks
            another protocol, needs more than is sent, or is not the one of ``fingerprint``. A server that does not
            answer then is a warning: it is asked again with every batch.
    """

    needs = frozenset(MEMBERS)
    bounds = (-math.inf, math.inf)
    guarded = True
    model_free = True

    def __init__(
        self,
        url: str | Sequence[str],
        timeout_s: float = DEFAULT_TIMEOUT_S,
        send: Sequence[str] = MEMBERS,
        bounds: tuple[float, float] | None = None,
        fingerprint: str | None = None,
        batch_size: int = 16,
        concurrency: int = 4,
        retries: int = 2,
        max_answer_mib: float = 4.0,
        token_file: str | None = None,
        ca_file: str | None = None,
        key: str = "uae.reward.terms.remote",
    ) -> None:
        given = locals()
        try:
            self.settings = RemoteSettings.model_validate({name: given[name] for name in RemoteSettings.model_fields})
        except ValidationError as error:
            place, problem = first_problem(error)
            raise ConfigError(f"{key}.{place}", problem) from error
        self.needs = self.settings.send
        self.bounds = self.settings.bounds or (-math.inf, math.inf)
        self._pinned = self._fingerprint = fingerprint
        self._known = False
        self._token_file = token_file
        self._client: RemoteClient | None = None
        self._key = key
        self.label = "remote"

    @classmethod
    def check_params(cls, params: Mapping[str, Any], key: str) -> None:
        """Refuse impossible parameters, and those that there were."""
        for name in GONE & params.keys():
            raise ConfigError(f"{key}.{name}", "is gone: a dead server costs timeout_s per batch at most; leave it out")
        super().check_params(params, key)

    @classmethod
    def check_timeout(cls, params: Mapping[str, Any], timeout_s: float, key: str) -> None:
        """Refuse a timeout that is not below the scorer's."""
        own_s = as_number(params.get("timeout_s", DEFAULT_TIMEOUT_S))
        if own_s is not None and own_s >= timeout_s:
            message = f"is {own_s:g} s and must be below the scorer's timeout, {timeout_s:g} s (uae.reward.timeout_s)"
            raise ConfigError(f"{key}.timeout_s", message)

    def setup(self, context: TermContext) -> None:
        """Read the token and look at the servers."""
        self.label = context.label or self.label
        self.check_timeout({"timeout_s": self.settings.timeout_s}, context.guard.timeout_s, self._key)
        problem = self._learn(time.monotonic() + self.settings.timeout_s)
        if problem is None:
            return
        reason = self._connection().clean(problem.reason)
        if problem.final:
            raise ConfigError(f"{self._key}.url", reason)
        logger.warning("no reward server answers yet, it is asked again with every batch: %s", reason)

    def score(self, batch: RewardBatch) -> list[RewardRecord]:
        """Score every sample at the server; never raises for one, and returns by the deadline."""
        started = time.monotonic()
        deadline = started + self.settings.timeout_s
        problem = None if self._known else self._learn(deadline)
        if problem is not None:
            return [self._clean(self._failed(problem, time.monotonic() - started))] * len(batch)
        call = _Call(self, batch)
        replies = self._connection().post(SCORE_PATH, call.jobs, deadline)
        seconds = (time.monotonic() - started) / max(1, len(batch))
        for places, reply in zip(call.chunks, replies, strict=True):
            for index, record in zip(places, self._read(reply, places, seconds), strict=True):
                call.records[index] = record
        return [self._clean(record) for record in call.records if record is not None]

    def _clean(self, record: RewardRecord) -> RewardRecord:
        """The record without the token and control characters in what a server may have written: all that is read of
        its answers passes here or, before the first batch, in :meth:`setup`."""
        clean = self._connection().clean
        if any(clean(name) != name for name in record.terms):
            reason = f"{self.label}: answered with the token as the name of a term"
            return RewardRecord.failed(Status.INVALID, reason, record.seconds)
        return record if record.reason is None else replace(record, reason=clean(record.reason))

    def _connection(self) -> RemoteClient:
        """Opened late, so that building a term reads no token and starts no thread."""
        if self._client is None:
            try:
                self._client = RemoteClient(self.settings, read_token(self._token_file, f"{self._key}.token_file"))
            except OSError as error:  # ssl.SSLError too
                raise ConfigError(f"{self._key}.ca_file", f"cannot read {self.settings.ca_file!r}: {error}") from error
            for url in self.settings.url:
                parts = urlsplit(url)
                if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
                    logger.warning("pictures and token go to %s unencrypted", url)
        return self._client

    def _learn(self, deadline: float) -> UnansweredError | None:
        """Ask for health; None where a server is ready, and every one that answers is as it should be."""
        problems: list[UnansweredError] = []
        ready = False
        for url, reply in zip(self.settings.url, self._connection().get(HEALTH_PATH, deadline), strict=True):
            if isinstance(reply, UnansweredError):
                problems.append(reply)
                continue
            try:
                ready |= self._accept(parse_health(reply))
            except ProtocolError as error:
                problems.append(UnansweredError(Fault.INVALID, f"{url}: {error}"))
        wrong = [problem for problem in problems if problem.final]
        self._known = ready and not wrong
        if self._known:
            return None
        unready = UnansweredError(Fault.ERROR, "no reward server is ready")
        return next(iter([*wrong, *problems, unready]))

    def _accept(self, health: Health) -> bool:
        """Take over what a server says about itself; whether it is ready.

        Raises:
            ProtocolError: it is not a server for this term.
        """
        if health.status != "ready":
            return False
        lacking = sorted(health.needs - self.needs)
        if lacking:
            raise ProtocolError(f"the server needs {', '.join(lacking)}, which is not among what is sent")
        size, limit = self.settings.batch_size, health.limits.max_samples
        if size > limit:
            raise ProtocolError(f"batch_size {size} is above the server's limit of {limit}")
        self._check_fingerprint(health.fingerprint)
        self._fingerprint = health.fingerprint
        self.bounds = self.settings.bounds or health.bounds
        return True

    def _check_fingerprint(self, found: str) -> None:
        if self._fingerprint is not None and found != self._fingerprint:
            whose = "the one set" if self._fingerprint == self._pinned else "the one at the start"
            raise ProtocolError(f"the server's fingerprint is {found!r}, not {whose}, {self._fingerprint!r}")

    def _failed(self, problem: UnansweredError, seconds: float) -> RewardRecord:
        return RewardRecord.failed(Status(problem.fault.value), f"{self.label}: {problem.reason}", seconds)

    def _read(self, reply: Reply, places: Sequence[int], seconds: float) -> list[RewardRecord]:
        """The records of a request, those of its samples in order."""
        if isinstance(reply, UnansweredError):
            return [self._failed(reply, seconds)] * len(places)
        ids = [str(index) for index in places]
        try:
            answer = parse_answer(reply, ids, self.bounds, seconds, self.label)
            self._check_fingerprint(answer.fingerprint)
        except ProtocolError as error:
            return [RewardRecord.failed(Status.INVALID, f"{self.label}: {error}", seconds)] * len(places)
        return [answer.records[identifier] for identifier in ids]


class _Call:
    """One batch on its way out: samples that cannot be sent have a record already, the others are in ``chunks``."""

    def __init__(self, term: RemoteReward, batch: RewardBatch) -> None:
        self.records: list[RewardRecord | None] = [None] * len(batch)
        self._batch = batch
        self._needs = term.needs
        self._label = term.label
        pictures = {"source": batch.source_B3HW, "reconstruction": batch.reconstruction_B3HW}
        self._levels = {name: to_levels(images) for name, images in pictures.items() if name in self._needs}
        self._rows = [self._row(index) for index in range(len(batch))]
        self._encoded: dict[bytes, str] = {}
        positions = batch.origin.positions if batch.origin else range(len(batch))
        slots: dict[int, dict[int, int]] = {}
        for index, position in enumerate(positions):
            if self.records[index] is None:
                chunk, place = divmod(position, term.settings.batch_size)
                slots.setdefault(chunk, {})[index] = place
        self.chunks = [list(places) for places in slots.values()]
        self.jobs = [functools.partial(self._body, places) for places in slots.values()]

    def _row(self, index: int) -> object:
        """The row of a sample for JSON; a row that cannot be sent costs the sample."""
        if "row" not in self._needs:
            return None
        assert self._batch.rows is not None
        row = self._batch.rows[index]
        try:
            return {name: plain(row[name], name) for name in ROW_MEMBERS if name in row}
        except ProtocolError as error:
            self.records[index] = RewardRecord.failed(Status.INVALID, f"{self._label}: row cannot be sent: {error}")
            return None

    def _body(self, places: Mapping[int, int]) -> bytes:
        """A request for samples by place; runs in a thread."""
        samples = []
        for index, place in places.items():
            sample: dict[str, object] = {"id": str(index), "place": place}
            sample.update((name, self._picture(levels[index])) for name, levels in self._levels.items())
            if "caption" in self._needs:
                assert self._batch.captions is not None
                sample["caption"] = self._batch.captions[index]
            if "row" in self._needs:
                sample["row"] = self._rows[index]
            samples.append(sample)
        return request_message(samples)

    def _picture(self, levels_HW3: np.ndarray) -> str:
        """Encoded once for equal pictures: the members of a group have one source."""
        digest = hashlib.sha256(levels_HW3.data).digest()
        found = self._encoded.get(digest)
        if found is None:
            found = self._encoded[digest] = encode_picture(levels_HW3)
        return found
