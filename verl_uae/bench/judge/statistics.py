# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Rates with their denominators and intervals, and agreement between judges.

Shape legend: N pictures, R resamples, J judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from verl_uae.bench.judge.protocol import FAILED, INCONSISTENT, LOSS, TIE, WIN, JudgeOutcome
from verl_uae.bench.judge.question import A, B
from verl_uae.bench.results import RESAMPLES, interval, resampled_means


def rate(numerator_N: Sequence[float], denominator_N: Sequence[float], seed: int, resamples: int) -> dict[str, Any]:
    """A ratio of sums over pictures, times 100, with a percentile bootstrap interval over pictures.

    Returns:
        ``value`` (None where the denominator is 0), ``numerator``, ``denominator``, ``interval`` (None likewise) and
        ``undefined_resamples``: those whose denominator is 0, which the interval leaves out.
    """
    values_N2 = np.array([numerator_N, denominator_N], dtype=np.float64).T
    top, bottom = (float(total) for total in values_N2.sum(axis=0)) if len(numerator_N) else (0.0, 0.0)
    found: dict[str, Any] = {"value": None, "numerator": top, "denominator": bottom, "interval": None}
    found["undefined_resamples"] = 0
    if bottom > 0:
        means_R2 = resampled_means(values_N2, seed, resamples)
        defined_R2 = means_R2[means_R2[:, 1] > 0]
        found["value"] = 100.0 * top / bottom
        found["interval"] = interval(100.0 * defined_R2[:, 0] / defined_R2[:, 1])
        found["undefined_resamples"] = len(means_R2) - len(defined_R2)
    return found


def win_rates(kinds: Sequence[str], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Counts of outcomes of the first candidate and the rates made of them; failed pictures count in no rate."""
    counts = Counter(kinds)
    judged = [kind for kind in kinds if kind != FAILED]
    half = [1.0 if kind == WIN else 0.0 if kind == LOSS else 0.5 for kind in judged]
    won = [float(kind == WIN) for kind in judged]
    return {
        "pictures": len(kinds),
        "judged": len(judged),
        "wins": counts[WIN],
        "losses": counts[LOSS],
        "ties": counts[TIE],
        "inconsistent": counts[INCONSISTENT],
        "failed": counts[FAILED],
        "win_rate": rate(half, [1.0] * len(judged), seed, resamples),
        "win_rate_without_ties": rate(won, [float(kind in (WIN, LOSS)) for kind in judged], seed, resamples),
    }


def position_rates(outcomes: Sequence[JudgeOutcome], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """What the order does, over the pictures with both answers; answers "tie" count in no rate.

    Returns:
        ``first_position``: answers that chose A, which is 50 for a judge that does not look at the order, and 100 for
        one that looks at nothing else. ``win_rate_shown_first`` and ``win_rate_shown_second``: how often the first
        candidate is chosen where it is A, or B; what a protocol without swap would report.
    """
    choices = [outcome.choices for outcome in outcomes if outcome.judged and outcome.answers]
    letters = (A, B)

    def share(wanted: Sequence[tuple[int, str]]) -> dict[str, Any]:
        """Of the answers of the orders named, those that chose the letter named."""
        chosen = [float(sum(pair[order] == letter for order, letter in wanted)) for pair in choices]
        decided = [float(sum(pair[order] in letters for order, _ in wanted)) for pair in choices]
        return rate(chosen, decided, seed, resamples)

    return {
        "first_position": share([(0, A), (1, A)]),
        "win_rate_shown_first": share([(0, A)]),
        "win_rate_shown_second": share([(1, B)]),
    }


def mean_scores(outcomes: Sequence[JudgeOutcome]) -> dict[str, dict[str, float]]:
    """Means of the judge's scores of 1 to 10 over the answers that have them, both orders, of pictures judged.

    Returns:
        By criterion ``first``, ``second`` and ``answers``, the number of answers averaged.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        for answer, (first, second) in zip(outcome.answers, ((A, B), (B, A)), strict=False):
            if outcome.judged and answer.verdict is not None and answer.verdict.scores:
                scores = answer.verdict.scores
                for name in scores[A]:
                    found.setdefault(name, []).append((scores[first][name], scores[second][name]))
    return {
        name: {
            "first": sum(pair[0] for pair in pairs) / len(pairs),
            "second": sum(pair[1] for pair in pairs) / len(pairs),
            "answers": len(pairs),
        }
        for name, pairs in sorted(found.items())
    }


def vote(kind: str) -> str:
    """An outcome as one of three votes; an inconsistent judge has no preference."""
    return TIE if kind == INCONSISTENT else kind


def majority(kinds: Sequence[str]) -> str:
    """What more than half of the judges of one picture say; else a tie. Failed if one of them failed."""
    if FAILED in kinds:
        return FAILED
    kind, count = Counter(map(vote, kinds)).most_common(1)[0]
    return kind if 2 * count > len(kinds) else TIE


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> dict[str, Any]:
    """Agreement of two judges beyond chance (Cohen 1960), over the pictures that both judged.

    Returns:
        ``pictures``, ``agreement`` in [0, 1] and ``kappa``; None without pictures, or if chance agrees always.
    """
    pairs = [(vote(one), vote(other)) for one, other in zip(a, b, strict=True) if FAILED not in (one, other)]
    if not pairs:
        return {"pictures": 0, "agreement": None, "kappa": None}
    observed = sum(one == other for one, other in pairs) / len(pairs)
    ours, theirs = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(ours[kind] * theirs[kind] for kind in ours) / len(pairs) ** 2
    return {"pictures": len(pairs), "agreement": observed, "kappa": _beyond_chance(observed, chance)}


def fleiss_kappa(kinds_JN: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Agreement of all judges beyond chance (Fleiss 1971), over the pictures that all judged; keys as `cohen_kappa`."""
    rows = [Counter(map(vote, column)) for column in zip(*kinds_JN, strict=True) if FAILED not in column]
    count = len(kinds_JN)
    if not rows or count < 2:
        return {"pictures": len(rows), "agreement": None, "kappa": None}
    observed = sum(sum(n * (n - 1) for n in row.values()) for row in rows) / (len(rows) * count * (count - 1))
    totals: Counter[str] = sum(rows, Counter())
    chance = sum((n / (len(rows) * count)) ** 2 for n in totals.values())
    return {"pictures": len(rows), "agreement": observed, "kappa": _beyond_chance(observed, chance)}


def _beyond_chance(observed: float, chance: float) -> float | None:
    # Everybody always says the same: nothing can be told from chance.
    return None if chance >= 1.0 - 1e-12 else (observed - chance) / (1.0 - chance)
