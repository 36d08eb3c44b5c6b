# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import random

import pytest

from verl_uae.reward.remote.breaker import Breaker, State


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("http://here", failures=3, cooldown_s=10.0, clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allow()
        breaker.failure()


def test_opens_after_failures_in_a_row_only(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.allow()
    breaker.success()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker, 1)
    assert breaker.state is State.OPEN and not breaker.allow() and breaker.wait_s == 10.0


def test_lets_one_probe_through_after_the_cool_down(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 9.9
    assert not breaker.allow() and breaker.state is State.OPEN
    clock.now += 0.2
    assert breaker.state is State.HALF_OPEN and breaker.allow() and breaker.probing
    assert not breaker.allow()
    breaker.success()
    assert breaker.state is State.CLOSED and not breaker.probing
    fail(breaker, 2)
    assert breaker.state is State.CLOSED


def test_a_failed_probe_opens_for_another_cool_down(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 10.0
    assert breaker.allow()
    breaker.failure()
    assert breaker.state is State.OPEN and not breaker.probing and breaker.wait_s == 10.0


def test_late_failures_of_calls_before_do_not_prolong_it(breaker: Breaker, clock: Clock) -> None:
    assert [breaker.allow() for _ in range(5)] == [True] * 5
    for _ in range(3):
        breaker.failure()
    clock.now += 6.0
    breaker.failure()
    assert breaker.wait_s == 4.0


def test_agrees_with_a_table_of_transitions() -> None:
    """Random events against the three states written out."""
    draw = random.Random(0)
    clock = Clock()
    breaker = Breaker("x", failures=2, cooldown_s=5.0, clock=clock)
    state, count, opened = "closed", 0, 0.0
    seen = set()
    for _ in range(3000):
        event = draw.choice(["pass", "fail", "wait"])
        if event == "wait":
            clock.now += 3.0
            continue
        if state == "open" and clock.now - opened >= 5.0:
            state = "half-open"
        allowed = breaker.allow()
        assert allowed == (state != "open")
        if not allowed:
            continue
        seen.add((state, event))
        if event == "pass":
            breaker.success()
            state, count = "closed", 0
        else:
            breaker.failure()
            count += 1
            if state == "half-open" or count == 2:
                state, count, opened = "open", 0, clock.now
    assert seen == set(itertools.product(["closed", "half-open"], ["pass", "fail"]))
