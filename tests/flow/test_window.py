# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from tests.flow.gaussian_toy import PUBLISHED, table_coefficients
from verl_uae.flow.config import TABLES, WindowConfig
from verl_uae.flow.kernels import Coefficients, gain
from verl_uae.flow.plan import draw_window, trainable_steps
from verl_uae.flow.schedule import sigma_schedule

ALL = tuple(range(10))


def draw(settings: WindowConfig, allowed=ALL, iteration: int = 0, seed: int = 0, steps: int = 10):
    return draw_window(settings, allowed, steps, iteration=iteration, seed=seed)


def drawn_settings(source: random.Random, steps: int) -> WindowConfig:
    low = source.randrange(steps)
    return WindowConfig(
        mode=source.choice(["random", "fixed", "progressive", "all"]),
        size=source.randint(1, 4),
        low=low,
        high=source.choice([None, source.randint(low + 1, steps)]) if low < steps // 2 else steps,
        stride=source.randint(1, 3),
        every=source.randint(1, 30),
        min_sigma_next=source.choice([0.0, 0.05, 0.3]),
        min_std=source.choice([0.0, 0.05, 0.2]),
        max_gain=source.choice([0.5, 2.0, 1e9]),
    )


def test_no_window_of_any_settings_contains_an_excluded_step() -> None:
    """3,000 drawn settings over kernels, noise levels, tables and lengths."""
    source, fitting = random.Random(0), 0
    for _ in range(3000):
        kernel, _ = source.choice(PUBLISHED)
        steps = source.choice([1, 2, 5, 10, 20, 28])
        table = sigma_schedule(steps, source.choice([1.0, 3.0, 6.0]), source.choice(TABLES)).tolist()
        transitions = table_coefficients(table, kernel, source.uniform(0.05, 1.0))
        settings = drawn_settings(source, steps)
        allowed = trainable_steps(transitions, table, settings)
        iteration, seed = source.randrange(1000), source.randrange(1 << 62)
        try:
            window = draw_window(settings, allowed, steps, iteration=iteration, seed=seed)
        except ValueError as error:
            assert "no window" in str(error)
            continue
        fitting += 1
        assert window and window == tuple(sorted(set(window)))
        for index in window:
            c = transitions[index]
            assert table[index + 1] >= settings.min_sigma_next
            assert c.std > 0.0 and c.std >= settings.min_std and gain(c) <= settings.max_gain
        if settings.mode != "all":
            high = steps // 2 if settings.high is None else settings.high
            assert window == tuple(range(window[0], window[0] + settings.size))
            assert settings.low <= window[0] and window[-1] < high
        assert window == draw_window(settings, allowed, steps, iteration=iteration, seed=seed)
    assert fitting > 1000


@pytest.mark.parametrize(
    ("kernel", "level", "table", "expected"),
    [
        ("flow_sde", 0.7, "even", range(9)),
        ("cps", 0.8, "even", range(9)),
        ("dance", 0.3, "even", range(9)),
        # The step .278 -> .0089 is the true end of this table, and .0089 -> 0 nothing: both are out.
        ("flow_sde", 0.7, "double_shift", range(8)),
        ("cps", 0.8, "double_shift", range(8)),
        ("cps", 0.8, "terminal", range(8)),
    ],
)
def test_the_final_transition_is_never_trainable_by_default(kernel, level, table, expected) -> None:
    sigmas = sigma_schedule(10, 3.0, table).tolist()
    transitions = table_coefficients(sigmas, kernel, level)
    assert trainable_steps(transitions, sigmas, WindowConfig()) == tuple(expected)


def test_each_exclusion_rule_is_a_setting_of_its_own() -> None:
    sigmas = sigma_schedule(10, 3.0, "double_shift").tolist()
    open_settings = {"min_sigma_next": 0.0, "min_std": 0.0, "max_gain": 1e9}
    transitions = table_coefficients(sigmas, "cps", 0.8)
    # Step 9 ends at 0, where cps is deterministic: no setting lets it in.
    assert trainable_steps(transitions, sigmas, WindowConfig(**open_settings)) == tuple(range(9))
    for change in ({"min_sigma_next": 0.05}, {"min_std": 0.05}, {"max_gain": 2.0}):
        assert trainable_steps(transitions, sigmas, WindowConfig(**{**open_settings, **change})) == tuple(range(8))


def test_a_step_on_a_limit_is_within_it() -> None:
    on = [Coefficients(1.0, -1.0, 0.5)]
    limits = {"min_sigma_next": 0.25, "min_std": 0.5, "max_gain": 2.0}
    assert trainable_steps(on, (1.0, 0.25), WindowConfig(**limits)) == (0,)
    for name, beyond in (("min_sigma_next", 0.26), ("min_std", 0.51), ("max_gain", 1.99)):
        assert trainable_steps(on, (1.0, 0.25), WindowConfig(**{**limits, name: beyond})) == ()


def test_random_covers_the_high_noise_half_evenly_and_repeats_by_seed_and_iteration() -> None:
    settings = WindowConfig()
    starts = [draw(settings, iteration=iteration, seed=11)[0] for iteration in range(3000)]
    assert starts == [draw(settings, iteration=iteration, seed=11)[0] for iteration in range(3000)]
    assert starts != [draw(settings, iteration=iteration, seed=12)[0] for iteration in range(3000)]
    # Starts 0 to N / 2 - size; four standard deviations of a fair draw.
    count = Counter(starts)
    assert set(count) == {0, 1, 2}
    assert all(abs(value - 1000) < 4 * math.sqrt(3000 * 2 / 9) for value in count.values())


def test_the_draw_is_pinned() -> None:
    """A resumed run of another release must see the windows of the one before."""
    assert [draw(WindowConfig(), iteration=i, seed=7)[0] for i in range(12)] == [2, 2, 2, 1, 1, 1, 2, 1, 1, 2, 1, 2]


def test_progressive_moves_from_noise_to_data_and_stays_there() -> None:
    settings = WindowConfig(mode="progressive", size=4, high=25, stride=1, every=25)
    for iteration, start in ((0, 0), (24, 0), (25, 1), (49, 1), (250, 10), (20 * 25, 20), (21 * 25, 20), (9999, 20)):
        found = draw(settings, tuple(range(24)), iteration, steps=25)
        assert found == tuple(range(start, start + 4)), iteration
    double = WindowConfig(mode="progressive", size=2, low=1, high=9, stride=2, every=10)
    assert [draw(double, iteration=i)[0] for i in (0, 9, 10, 20, 30, 40)] == [1, 1, 3, 5, 7, 7]


def test_fixed_and_all() -> None:
    assert draw(WindowConfig(mode="fixed", low=2)) == (2, 3, 4)
    assert draw(WindowConfig(mode="all", size=5, low=4, high=5), allowed=(0, 1, 2, 5)) == (0, 1, 2, 5)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (WindowConfig(size=6), ALL),
        (WindowConfig(), (0, 1, 3, 4)),
        (WindowConfig(mode="fixed", low=3), ALL),
        (WindowConfig(mode="fixed", low=0), (1, 2, 3, 4)),
        (WindowConfig(mode="progressive", high=2), ALL),
        (WindowConfig(low=8, high=20), ALL),
        (WindowConfig(mode="all"), ()),
    ],
)
def test_where_no_window_fits_the_error_names_the_settings(settings: WindowConfig, allowed: tuple) -> None:
    with pytest.raises(ValueError, match=r"no window .* of 10 steps, \[.*\] can be trained .*window\.min_sigma_next"):
        draw(settings, allowed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "sliding"}, r"window\.mode: must be one of random, fixed, progressive, all, got 'sliding'"),
        ({"size": 0}, r"window\.size"),
        ({"size": 2.0}, r"window\.size"),
        ({"size": True}, r"window\.size"),
        ({"low": -1}, r"window\.low"),
        ({"low": 3, "high": 3}, r"window\.high: must be above window\.low"),
        ({"stride": 0}, r"window\.stride"),
        ({"every": 0}, r"window\.every"),
        ({"min_sigma_next": 1.5}, r"window\.min_sigma_next"),
        ({"min_std": -0.1}, r"window\.min_std"),
        ({"min_std": math.nan}, r"window\.min_std"),
        ({"max_gain": 0.0}, r"window\.max_gain"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowConfig(**change)


def test_lengths_and_iterations_are_checked() -> None:
    sigmas = sigma_schedule(10, 3.0).tolist()
    with pytest.raises(ValueError, match="10 transitions between 10 noise levels"):
        trainable_steps(table_coefficients(sigmas, "cps", 0.8), sigmas[:-1], WindowConfig())
    with pytest.raises(ValueError, match="iteration"):
        draw(WindowConfig(), iteration=-1)
