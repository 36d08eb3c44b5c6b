# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""When a caption server ends each of its captions. Servers do not know of each other, so each is worked out alone."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from verl_uae.plan.load import Captioning


@dataclass(frozen=True, slots=True)
class Written:
    """What a server did, seconds from the start of a step."""

    ends: list[float]
    """Of the captions, in the order in which they came."""
    worked: list[tuple[float, float]]
    """When it had any."""


def written(captioning: Captioning, arrivals: Sequence[tuple[float, int]]) -> Written:
    """Captions of one server.

    Args:
        captioning: how long a token takes.
        arrivals: of each caption when it comes and its tokens, in order of time.
    """
    return (_batches if captioning.rows else _continuous)(captioning, arrivals)


def _continuous(captioning: Captioning, arrivals: Sequence[tuple[float, int]]) -> Written:
    """All captions at hand advance together, by one token in the time that so many take; all wait for a prompt that
    is read."""
    ends, worked = [0.0] * len(arrivals), list[tuple[float, float]]()
    now = since = tokens = 0.0
    active: list[tuple[float, int]] = []
    taken = 0
    while taken < len(arrivals) or active:
        come = arrivals[taken][0] if taken < len(arrivals) else float("inf")
        if active:
            step = captioning.seconds(len(active))
            end = now + (active[0][0] - tokens) * step
            if end <= come:
                now, tokens = end, active[0][0]
                while active and active[0][0] <= tokens:
                    ends[heapq.heappop(active)[1]] = now
                if not active:
                    worked.append((since, now))
                continue
            if come > now:
                tokens += (come - now) / step
                now = come
        else:
            since = now = max(now, come)
        now += captioning.prefill_s
        heapq.heappush(active, (tokens + arrivals[taken][1], taken))
        taken += 1
    return Written(ends, worked)


def _batches(captioning: Captioning, arrivals: Sequence[tuple[float, int]]) -> Written:
    """A batch starts when it is full, or when nothing has come for a while; all of its rows are computed until its
    longest caption ends, then the next."""
    ends, worked = list[float](), list[tuple[float, float]]()
    now = 0.0
    while len(ends) < len(arrivals):
        first = len(ends)
        last = first + 1
        quiet = max(now, arrivals[first][0])
        while last < len(arrivals) and last - first < captioning.rows:
            if arrivals[last][0] > quiet + captioning.wait_s:
                break
            quiet = max(quiet, arrivals[last][0])
            last += 1
        start = quiet if last - first == captioning.rows else quiet + captioning.wait_s
        longest = max(length for _, length in arrivals[first:last])
        now = start + captioning.prefill_s * (last - first) + longest * captioning.seconds(captioning.rows)
        worked.append((start, now))
        ends += [now] * (last - first)
    return Written(ends, worked)
