# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import math
import random

import numpy as np
import pytest

from verl_uae.reward.step import Tripwire, trend


def test_trend_is_students_t_of_the_least_squares_slope() -> None:
    rng = np.random.default_rng(0)
    for count in (3, 5, 40):
        values = rng.normal(size=count) + 0.1 * np.arange(count)
        design = np.stack([np.ones(count), np.arange(count)], axis=1)
        fitted, rest, *_ = np.linalg.lstsq(design, values, rcond=None)
        error = math.sqrt(rest[0] / (count - 2) * np.linalg.inv(design.T @ design)[1, 1])
        assert trend(values.tolist()) == pytest.approx(fitted[1] / error, rel=1e-9)


def test_trend_of_lines_and_constants() -> None:
    assert trend([0.1, 0.2, 0.3]) == math.inf and trend([0.3, 0.2, 0.1, 0.0]) == -math.inf
    assert trend([0.7] * 9) == trend([0.0] * 3) == 0.0
    with pytest.raises(ValueError, match="at least 3"):
        trend([1.0, 2.0])


def _run(wire: Tripwire, rewards: list[float], values: list[float]) -> list[float]:
    return [wire.update(r, {"ssim": v, "pixel": 0.5})["ssim"] for r, v in zip(rewards, values, strict=True)]


def test_flags_when_the_reward_rises_and_the_held_out_term_falls(caplog: pytest.LogCaptureFixture) -> None:
    up, down = [0.1 * step for step in range(8)], [-0.1 * step for step in range(8)]
    with caplog.at_level(logging.WARNING):
        assert _run(Tripwire({"ssim": True}, 5), up, down) == [0.0] * 4 + [1.0] * 4
    assert len(caplog.records) == 1 and "the held-out term ssim gets worse" in caplog.text
    for rewards, values in ((up, up), (down, down), (down, up), (up, [0.5] * 8), ([0.5] * 8, down)):
        assert _run(Tripwire({"ssim": True}, 5), rewards, values) == [0.0] * 8
    # A distance gets worse by rising.
    assert _run(Tripwire({"ssim": False}, 5), up, up)[-1] == 1.0
    assert _run(Tripwire({"ssim": False}, 5), up, down)[-1] == 0.0


def test_the_flag_goes_out_again() -> None:
    up = [0.1 * step for step in range(16)]
    turn = [-0.1 * step for step in range(6)] + [0.1 * step for step in range(10)]
    flags = _run(Tripwire({"ssim": True}, 5), up, turn)
    assert flags[5] == 1.0 and flags[-1] == 0.0


def test_missing_means_leave_the_window_alone() -> None:
    wire = Tripwire({"ssim": True}, 3)
    wire.update(0.1, {"ssim": 0.9}), wire.update(None, {"ssim": 0.0}), wire.update(0.2, {"ssim": 0.8})
    assert wire.update(0.5, {}) == {"ssim": 0.0}
    assert wire.update(0.9, {"ssim": math.nan}) == {"ssim": 0.0}
    assert wire.update(0.3, {"ssim": 0.7}) == {"ssim": 1.0}
    assert Tripwire({}, 3).update(0.3, {"ssim": 0.7}) == {}


def test_steady_noise_rarely_trips() -> None:
    draw = random.Random(1)
    trips = 0
    for _ in range(400):
        wire = Tripwire({"ssim": True}, 20)
        noise = [[draw.gauss(0.5, 0.1) for _ in range(20)] for _ in range(2)]
        trips += _run(wire, *noise)[-1] == 1.0
    # P(t_18 > 2) = 0.030 for each of the two.
    assert trips <= 4


def test_state_survives_json(caplog: pytest.LogCaptureFixture) -> None:
    wire = Tripwire({"ssim": True, "gone": True}, 3)
    for step in range(3):
        wire.update(0.1 * step, {"ssim": -0.1 * step, "gone": 0.0})
    other = Tripwire({"ssim": True, "new": True}, 3)
    other.load_state_dict(json.loads(json.dumps(wire.state_dict())))
    caplog.clear()
    assert other.update(0.3, {"ssim": -0.3, "new": 0.0}) == {"ssim": 1.0, "new": 0.0}
    assert not caplog.records, "warned of before"


def test_a_loaded_state_replaces_what_was_seen() -> None:
    wire, used = Tripwire({"ssim": True}, 3), Tripwire({"ssim": True, "gone": True}, 3)
    wire.update(0.5, {"ssim": 0.5})
    for step in range(3):
        used.update(0.1 * step, {"ssim": -0.1 * step, "gone": -0.1 * step})
    used.load_state_dict(wire.state_dict())
    assert used.state_dict() == {"pairs": {"ssim": [[0.5, 0.5]], "gone": []}, "warned": []}
    other = Tripwire({"ssim": True}, 3)
    other.load_state_dict({"pairs": {}, "warned": ["ssim", "gone"]})
    assert other.state_dict()["warned"] == ["ssim"]
