# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Simulated steps against sums and maxima by hand."""

from __future__ import annotations

import dataclasses

import pytest

from verl_uae.plan.load import Captioning, Control, Drawing, Lengths, Load, Work
from verl_uae.plan.schedules import (
    AHEAD,
    CAPTIONS,
    CONTROL,
    DRAWING,
    LINKS,
    LONGEST,
    OWN,
    SCHEDULES,
    STEPS,
    STREAMED,
    WARM,
    simulate,
)
from verl_uae.plan.servers import written

#: 8 captions of 100 tokens on 4 servers, two each: 100 x 20 ms and two prompts of 50 ms.
CAPTIONING = Captioning(8, 4, Lengths(100, 200, 0.0), prefill_s=0.05, token_s=0.0, step_s=0.02)
CAPTIONS_S = 100 * 0.02 + 2 * 0.05
DRAWING_RANKS = Drawing(ranks=4, batch=2, picture_s=1.5)
UPDATE = Work("update", compute_s=0.7, alone_s=0.3)


def load(**changes: object) -> Load:
    return dataclasses.replace(Load(8, (UPDATE,), 4, Control(8), CAPTIONING, DRAWING_RANKS), **changes)  # type: ignore[arg-type]


def test_one_pool_without_variance_is_a_sum() -> None:
    found = simulate(load())
    assert found.step_s == pytest.approx(CAPTIONS_S + 2 * 1.5 + 1.0)
    assert found.spent == pytest.approx(
        {CAPTIONS: CAPTIONS_S, LONGEST: 0, DRAWING: 3.0, CONTROL: 0, LINKS: 0, "update": 1.0}
    )
    # All of them work all of the time.
    assert found.use["GPUs"] == pytest.approx(1.0)


def test_pools_of_their_own_in_turns_take_as_long_and_stand_idle() -> None:
    found = simulate(load(), OWN)
    assert found.step_s == pytest.approx(simulate(load()).step_s)
    assert found.use["captioner"] == pytest.approx((CAPTIONS_S + 1.0) / found.step_s)
    assert found.use["decoder"] == pytest.approx(3.0 / found.step_s)


def test_one_ahead_is_the_longer_of_captions_and_drawing() -> None:
    for picture_s in (0.2, 3.0):
        drawing = dataclasses.replace(DRAWING_RANKS, picture_s=picture_s)
        found = simulate(load(drawing=drawing), AHEAD)
        assert found.step_s == pytest.approx(max(CAPTIONS_S, 2 * picture_s) + 1.0)


def test_streamed_is_what_takes_longer_and_the_way_in() -> None:
    """Captions of one server come one by one: of 1, 2, ... tokens."""

    class Staircase(Lengths):
        def draw(self, count: int, *name: int | str) -> list[int]:
            return [10 * (number + 1) for number in range(count)]

    captioning = Captioning(8, 8, Staircase(1, 1), prefill_s=0.0, token_s=0.0, step_s=0.01)
    fast = Drawing(ranks=1, batch=1, picture_s=0.02)
    # Every 0.1 s comes one: the last at 0.8 s, and is drawn then.
    assert simulate(load(captioning=captioning, drawing=fast), STREAMED).step_s == pytest.approx(0.8 + 0.02 + 1.0)
    slow = dataclasses.replace(fast, picture_s=0.5)
    # The first at 0.1 s, and then they are drawn without a pause.
    found = simulate(load(captioning=captioning, drawing=slow), STREAMED)
    assert found.step_s == pytest.approx(0.1 + 8 * 0.5 + 1.0)
    assert found.use["decoder"] == pytest.approx(4.0 / found.step_s)


def test_streamed_micro_batches_are_shared_out_as_the_dispatcher_does() -> None:
    """All come at once: the first two leave as soon as they are two, a rank each, then micro-batches of at most two."""
    drawing = Drawing(ranks=2, batch=2, picture_s=1.0, condition_s=0.5)
    found = simulate(load(drawing=drawing), STREAMED)
    assert found.spent[DRAWING] == pytest.approx(0.5 + 1 + 0.5 + 2 + 0.5 + 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_caption_is_drawn_once(schedule: str) -> None:
    captioning = dataclasses.replace(CAPTIONING, captions=37, lengths=Lengths(100, 200), cache_s=1e-4)
    drawing = dataclasses.replace(DRAWING_RANKS, ranks=3, wait_s=0.05)
    found = simulate(load(samples=37, captioning=captioning, drawing=drawing), schedule, steps=4)
    assert found.drawn == {(step, number): 1 for step in range(4) for number in range(37)}
    assert sum(found.spent.values()) == pytest.approx(found.step_s)
    assert all(0 <= share <= 1 + 1e-9 for share in found.use.values())
    assert found == simulate(load(samples=37, captioning=captioning, drawing=drawing), schedule, steps=4)


def test_the_longest_caption_is_waited_for() -> None:
    spread = dataclasses.replace(CAPTIONING, captions=64, servers=64, lengths=Lengths(100, 400, 0.5))
    alike = dataclasses.replace(spread, lengths=Lengths(100, 400, 0.0))
    captioning = simulate(load(captioning=spread)).spent
    longest = [max(spread.lengths.draw(64, step)) for step in range(WARM, STEPS)]
    assert captioning[CAPTIONS] + captioning[LONGEST] == pytest.approx(sum(longest) / len(longest) * 0.02 + 0.05)
    assert captioning[LONGEST] > 1.0 and simulate(load(captioning=alike)).spent[LONGEST] == pytest.approx(0.0)


def test_lengths_have_their_mean_and_their_limit() -> None:
    lengths = Lengths(320, 512).draw(20_000, 1)
    assert max(lengths) == 512 and sum(lengths) / len(lengths) == pytest.approx(312, abs=3)
    assert Lengths(320, 10_000).draw(20_000, 1) != lengths
    assert sum(Lengths(320, 10_000).draw(20_000, 1)) / 20_000 == pytest.approx(320, rel=0.01)


def test_continuous_batching_gives_each_caption_what_is_at_hand() -> None:
    """Two captions of one server, by hand: 10 tokens together, the longer one alone from there on."""

    class Two(Lengths):
        def draw(self, count: int, *name: int | str) -> list[int]:
            return [10, 30]

    captioning = Captioning(2, 1, Two(1, 1), prefill_s=0.0, token_s=0.0, step_s=0.01, cache_s=0.02)
    found = simulate(load(captioning=captioning, drawing=Drawing(1, 2, 0.0)))
    assert found.spent[CAPTIONS] == pytest.approx(10 * 0.05 + 20 * 0.03)


def test_a_caption_that_comes_later_joins_those_at_hand() -> None:
    """By hand: 10 tokens alone in a second, then a prompt of 0.5 s that all wait for, then the other 10 beside it."""
    captioning = Captioning(2, 1, Lengths(1, 1), prefill_s=0.5, token_s=0.0, step_s=0.0, cache_s=0.1)
    found = written(captioning, [(0.0, 20), (1.5, 40)])
    assert found.ends == pytest.approx([1.5 + 0.5 + 10 * 0.2, 4.0 + 30 * 0.1]) and found.worked == [
        (0.0, found.ends[1])
    ]
    # One that comes when the server has nothing to do starts at once.
    apart = written(captioning, [(0.0, 20), (9.0, 40)])
    assert apart.ends == pytest.approx([0.5 + 2.0, 9.0 + 0.5 + 4.0])
    assert apart.worked == [(0.0, apart.ends[0]), (9.0, apart.ends[1])]


def test_the_rank_with_most_captions_is_waited_for() -> None:
    drawing = dataclasses.replace(DRAWING_RANKS, ranks=3, condition_s=0.25)
    found = simulate(load(drawing=drawing), OWN)
    # 3, 3 and 2 of eight.
    assert found.spent[DRAWING] == pytest.approx(3 * 1.5 + 0.25)
    assert found.use["decoder"] == pytest.approx((8 * 1.5 + 3 * 0.25) / 3 / found.step_s)


def test_a_batch_that_is_filled_computes_all_of_its_rows() -> None:
    captioning = dataclasses.replace(CAPTIONING, servers=1, rows=4, wait_s=0.3, token_s=0.01, step_s=0.0)
    found = simulate(load(captioning=captioning, control=Control(1, agent_s=0.2)))
    # Two batches of four, of 100 tokens each; the first is full after four prompts.
    batch = 100 * 4 * 0.01 + 4 * 0.05
    assert found.spent[CAPTIONS] == pytest.approx(4 * 0.2 + 2 * batch)
    late = dataclasses.replace(captioning, wait_s=0.1)
    # The first is alone, four are there when it has ended, and three wait for a while for a fourth.
    alone = simulate(load(captioning=late, control=Control(1, agent_s=0.2))).spent[CAPTIONS]
    assert alone == pytest.approx(0.2 + 0.1 + 4.05 + batch + 0.1 + 4.15)


def test_weights_that_arrive_in_time_cost_their_first_part() -> None:
    hidden, late = Work("update", 1.0, 0.5, units=10), Work("update", 0.5, 1.0, units=10)
    assert simulate(load(works=(hidden,), captioning=None, drawing=None)).step_s == pytest.approx(1.0 + 0.05)
    found = simulate(load(works=(late,), captioning=None, drawing=None))
    assert found.step_s == pytest.approx(1.0 + 0.05) and found.spent[LINKS] == pytest.approx(0.5)
    assert found.use["links"] == pytest.approx(1.0 / found.step_s)


def test_without_links_more_gpus_do_more_in_the_same_time() -> None:
    def step(times: int) -> float:
        captioning = dataclasses.replace(CAPTIONING, captions=8 * times, servers=4 * times)
        drawing = dataclasses.replace(DRAWING_RANKS, ranks=4 * times)
        control = Control(8 * times)
        return simulate(Load(8 * times, (UPDATE,), 4 * times, control, captioning, drawing)).step_s

    assert step(64) == pytest.approx(step(1))


def test_a_slow_controller_bounds_the_step() -> None:
    def step(samples: int) -> float:
        captioning = dataclasses.replace(CAPTIONING, captions=samples, servers=samples // 2)
        drawing = dataclasses.replace(DRAWING_RANKS, ranks=samples // 2)
        return simulate(Load(samples, (UPDATE,), samples // 2, Control(samples, 0.0, 0.1), captioning, drawing)).step_s

    # One process: seconds grow with samples, whatever the GPUs do.
    assert step(2048) - step(1024) == pytest.approx(102.4)
    agents = simulate(load(control=Control(1, agent_s=1.0), captioning=CAPTIONING))
    assert agents.spent[CAPTIONS] + agents.spent[LONGEST] == pytest.approx(8 * 1.0 + 2.05)
