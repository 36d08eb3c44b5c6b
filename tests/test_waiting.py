# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import threading
import time

import pytest

from verl_uae.waiting import saying


def test_a_long_wait_is_told_of_and_a_short_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    left = iter(range(3, 0, -1))
    with caplog.at_level(logging.WARNING), saying(lambda: f"{next(left, 0)} ranks", every_s=0.05):
        deadline = time.monotonic() + 30
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [record.getMessage().split(",")[0] for record in caplog.records[:2]] == [
        "waiting for 3 ranks",
        "waiting for 2 ranks",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING), saying("nothing", every_s=60):
        pass
    assert not caplog.records


def test_it_ends_with_the_body_also_by_an_exception() -> None:
    with pytest.raises(ValueError, match="broken"), saying("x", every_s=60):
        raise ValueError("broken")
    assert not [thread for thread in threading.enumerate() if thread.name == "verl_uae waiting"]
