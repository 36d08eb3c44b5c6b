# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest

from verl_uae.bench.judge.protocol import (
    FAILED,
    INCONSISTENT,
    LOSS,
    TIE,
    WIN,
    Answered,
    JudgeOutcome,
    Verdict,
)
from verl_uae.bench.judge.result import (
    cohen_kappa,
    fleiss_kappa,
    majority,
    mean_scores,
    position_rates,
    rate,
    win_rates,
)
from verl_uae.bench.results import resampled_means

KINDS = [WIN] * 5 + [LOSS] * 3 + [TIE] * 2 + [INCONSISTENT] * 4 + [FAILED] * 6


def outcome(plain: str | None, swapped: str | None) -> JudgeOutcome:
    answers = tuple(Answered(None if choice is None else Verdict(choice)) for choice in (plain, swapped))
    return JudgeOutcome(answers)


def test_rates_have_their_denominators() -> None:
    found = win_rates(KINDS, seed=0, resamples=200)
    assert {key: found[key] for key in ("pictures", "judged", "wins", "losses", "ties", "inconsistent", "failed")} == {
        "pictures": 20, "judged": 14, "wins": 5, "losses": 3, "ties": 2, "inconsistent": 4, "failed": 6
    }  # fmt: skip
    half, without = found["win_rate"], found["win_rate_without_ties"]
    assert (half["numerator"], half["denominator"], without["numerator"], without["denominator"]) == (
        8.0,
        14.0,
        5.0,
        8.0,
    )
    assert half["value"] == pytest.approx(100 * 8 / 14) and without["value"] == 62.5
    # The two candidates' rates are each other's complement.
    mirror = {WIN: LOSS, LOSS: WIN}
    other = win_rates([mirror.get(kind, kind) for kind in KINDS], seed=0, resamples=200)
    for name in ("win_rate", "win_rate_without_ties"):
        assert other[name]["value"] == pytest.approx(100 - found[name]["value"])
        low, high = found[name]["interval"]
        assert other[name]["interval"] == pytest.approx([100 - high, 100 - low])


def test_intervals_are_those_of_the_exact_bootstrap() -> None:
    """Three pictures: all 27 resamples, against the quantiles of many drawn ones."""
    values = [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    exact = []
    for rows in itertools.product(values, repeat=3):
        top, bottom = np.sum(rows, axis=0)
        if bottom:
            exact.append(top / bottom)
    found = rate(*zip(*values, strict=True), seed=0, resamples=20_000)  # type: ignore[misc]
    assert found["interval"] == [100 * min(exact), 100 * max(exact)] == [0.0, 100.0]
    assert found["undefined_resamples"] / 20_000 == pytest.approx(1 / 27, abs=0.005)
    # With more pictures the interval is that of a loop over the same draws.
    rng = np.random.default_rng(0)
    top = rng.integers(0, 2, 40).astype(float)
    bottom = np.maximum(top, rng.integers(0, 2, 40))
    found = rate(top.tolist(), bottom.tolist(), seed=3, resamples=500)
    means = resampled_means(np.stack([top, bottom], axis=1), 3, 500)
    expected = np.percentile([100 * a / b for a, b in means], [2.5, 97.5])
    assert found["interval"] == pytest.approx(expected.tolist())
    assert found["value"] == pytest.approx(100 * top.sum() / bottom.sum())


def test_what_is_not_defined_is_null() -> None:
    for found in (rate([], [], 0, 10), rate([0.0], [0.0], 0, 10)):
        assert found["value"] is None and found["interval"] is None and found["denominator"] == 0
    assert win_rates([FAILED] * 3, 0, 10)["win_rate"]["value"] is None
    assert win_rates([TIE, INCONSISTENT], 0, 10)["win_rate_without_ties"]["value"] is None


def test_the_position_in_closed_form() -> None:
    outcomes = [
        *[outcome("A", "B")] * 2,  # wins: A once of two
        outcome("B", "A"),  # a loss: A once of two
        *[outcome("A", "A")] * 3,  # A both times
        outcome("B", "B"),
        outcome("A", "tie"),
        outcome("tie", "tie"),
        outcome("A", None),  # failed: counts nowhere
        JudgeOutcome(),  # identical candidates
    ]
    found = position_rates(outcomes, seed=0, resamples=100)
    first = found["first_position"]
    assert (first["numerator"], first["denominator"]) == (2 + 1 + 6 + 0 + 1, 4 + 2 + 6 + 2 + 1)
    shown = found["win_rate_shown_first"]
    assert (shown["numerator"], shown["denominator"]) == (2 + 3 + 1, 2 + 1 + 3 + 1 + 1)
    shown = found["win_rate_shown_second"]
    assert (shown["numerator"], shown["denominator"]) == (2 + 1, 2 + 1 + 3 + 1)
    assert position_rates([], 0, 10)["first_position"]["value"] is None


def test_kappa_of_two_against_a_known_table() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5, kappa 0.4 exactly."""
    table = {(WIN, WIN): 20, (WIN, LOSS): 5, (LOSS, WIN): 10, (LOSS, LOSS): 15, (FAILED, WIN): 7, (LOSS, FAILED): 3}
    a, b = zip(*(pair for pair, count in table.items() for _ in range(count)), strict=True)
    found = cohen_kappa(a, b)
    assert found["pictures"] == 50 and found["agreement"] == pytest.approx(0.7) and found["kappa"] == pytest.approx(0.4)
    assert cohen_kappa([WIN, LOSS], [WIN, LOSS])["kappa"] == 1.0
    assert cohen_kappa([WIN, LOSS], [LOSS, WIN])["kappa"] == -1.0
    # Inconsistent is no preference, as a tie is.
    assert cohen_kappa([WIN, TIE], [WIN, INCONSISTENT])["kappa"] == 1.0
    assert cohen_kappa([WIN, WIN], [WIN, WIN]) == {"pictures": 2, "agreement": 1.0, "kappa": None}
    assert cohen_kappa([FAILED], [WIN]) == {"pictures": 0, "agreement": None, "kappa": None}


def test_kappa_of_many_against_its_definition() -> None:
    """Agreement counted pair by pair of judges, chance from the shares of all votes."""
    rng = np.random.default_rng(1)
    kinds = [[(WIN, LOSS, TIE)[index] for index in rng.integers(0, 3, 30)] for _ in range(5)]
    columns = list(zip(*kinds, strict=True))
    observed = np.mean([a == b for column in columns for a, b in itertools.permutations(column, 2)])
    shares = [sum(vote == kind for column in columns for vote in column) / 150 for kind in (WIN, LOSS, TIE)]
    chance = sum(share**2 for share in shares)
    found = fleiss_kappa(kinds)
    assert found["pictures"] == 30 and found["agreement"] == pytest.approx(observed)
    assert found["kappa"] == pytest.approx((observed - chance) / (1 - chance))
    kinds[2][4] = FAILED
    assert fleiss_kappa(kinds)["pictures"] == 29
    assert fleiss_kappa([[WIN, LOSS], [WIN, LOSS], [WIN, LOSS]])["kappa"] == pytest.approx(1.0)
    assert fleiss_kappa([[WIN, LOSS]])["kappa"] is None and fleiss_kappa([[FAILED], [WIN]])["kappa"] is None


def test_the_majority() -> None:
    cases = {
        (WIN,): WIN,
        (WIN, LOSS): TIE,
        (WIN, WIN, LOSS): WIN,
        (LOSS, WIN, LOSS, INCONSISTENT): TIE,
        (LOSS, LOSS, LOSS, INCONSISTENT): LOSS,
        (WIN, LOSS, TIE): TIE,
        (WIN, TIE, INCONSISTENT): TIE,
        (WIN, WIN, FAILED): FAILED,
    }
    for kinds, expected in cases.items():
        assert all(majority(order) == expected for order in itertools.permutations(kinds)), kinds


def test_scores_go_to_the_candidate_and_not_to_the_letter() -> None:
    plain = Answered(Verdict("A", {"A": {"content": 9.0}, "B": {"content": 2.0}}))
    swapped = Answered(Verdict("B", {"A": {"content": 4.0}, "B": {"content": 7.0}}))
    bare, lost = Answered(Verdict("B")), Answered(None)
    outcomes = [
        JudgeOutcome((plain, swapped)),
        JudgeOutcome((plain, bare)),
        JudgeOutcome((plain, lost)),
        JudgeOutcome(),
    ]
    assert mean_scores(outcomes) == {"content": {"first": (9 + 7 + 9) / 3, "second": (2 + 4 + 2) / 3, "answers": 3}}
    assert mean_scores([]) == {}
