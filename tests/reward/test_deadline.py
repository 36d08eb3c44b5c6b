# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
import threading
import time

import pytest

from verl_uae.errors import RewardError
from verl_uae.reward.deadline import Guard


@pytest.fixture
def release():
    """An event to hang on; set after the test, so that no thread outlives it."""
    event = threading.Event()
    yield event
    event.set()


def test_order_values_and_errors() -> None:
    calls = [lambda i=i: 10 // i for i in (5, 0, 2)]
    results = Guard(timeout_s=5.0).map("t", calls, num_threads=3)
    assert [call.value for call in results] == [2, None, 5]
    assert isinstance(results[1].error, ZeroDivisionError)


def test_sys_exit_is_an_error_not_the_end() -> None:
    assert isinstance(Guard(timeout_s=5.0).run("t", lambda: sys.exit(3)).error, SystemExit)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_hanging_call_costs_itself_only(release: threading.Event, num_threads: int) -> None:
    guard = Guard(timeout_s=1.2)
    calls = [lambda: 1, release.wait, lambda: 2, lambda: 3]
    start = time.monotonic()
    results = guard.map("t", calls, num_threads=num_threads)
    assert time.monotonic() - start < 2.2
    assert [call.timed_out for call in results] == [False, True, False, False]
    assert [call.value for call in results] == [1, None, 2, 3]
    assert guard.abandoned == 1


def test_a_late_answer_is_thrown_away() -> None:
    """The abandoned call answers while the round still runs."""
    answered = threading.Event()

    def late() -> int:
        answered.wait()
        return 1

    def frees_the_late_one() -> int:
        answered.set()
        time.sleep(0.2)
        return 2

    guard = Guard(timeout_s=0.6)
    results = guard.map("t", [late, frees_the_late_one, lambda: 3])
    assert results[0].timed_out and results[0].value is None
    assert [call.value for call in results[1:]] == [2, 3]
    deadline = time.monotonic() + 5.0
    while guard.abandoned and time.monotonic() < deadline:
        time.sleep(0.01)
    assert guard.abandoned == 0


def test_too_many_abandoned_threads_name_the_term(release: threading.Event) -> None:
    guard = Guard(timeout_s=0.05, max_abandoned=2)
    with pytest.raises(RewardError, match=r"'slow'.*3 calls still run"):
        guard.map("slow", [release.wait] * 10, num_threads=1)


def test_no_thread_stays_behind() -> None:
    before = threading.active_count()
    guard = Guard(timeout_s=5.0)
    for _ in range(20):
        guard.map("t", [lambda: 1] * 8, num_threads=4)
    deadline = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before  # fewer: threads of earlier tests have ended meanwhile


def test_a_late_call_takes_no_other_with_it(release: threading.Event) -> None:
    """The second thread is within its own time when the first one is over its."""
    calls = [release.wait, lambda: time.sleep(0.7), lambda: time.sleep(0.7) or 2]
    results = Guard(timeout_s=1.2).map("t", calls, num_threads=2)
    assert [call.timed_out for call in results] == [True, False, False] and results[2].value == 2


def test_after_the_error_no_further_call_is_made(release: threading.Event) -> None:
    made, before = [], threading.active_count()
    calls = [release.wait, lambda: time.sleep(0.3), lambda: release.wait(5.0), lambda: made.append(1)]
    with pytest.raises(RewardError):
        Guard(timeout_s=0.5, max_abandoned=0).map("t", calls, num_threads=2)
    release.set()
    deadline = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not made
