# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The result of protocol 2, as JSON and as a page: rates with denominators and intervals, and agreement of judges.

Rates are times 100 and of the first candidate.

Shape legend: N pictures, R resamples, J judges.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verl_uae.bench.judge.contest import CAPTION, Comparison, JudgePrompt
from verl_uae.bench.judge.judges import Judge
from verl_uae.bench.judge.protocol import FAILED, INCONSISTENT, LOSS, ORDERS, TIE, WIN, A, B, Judged, JudgeOutcome
from verl_uae.bench.results import (
    LEVEL,
    PURPOSE,
    RESAMPLES,
    Failure,
    interval,
    made,
    resampled_means,
    versions,
)
from verl_uae.bench.unified import REPORT_SIDE, reference_digest
from verl_uae.data.images import decode_image
from verl_uae.errors import DecodeError
from verl_uae.files import write_text
from verl_uae.pages import data_uri, render_page

FORMAT = 1
BENCHMARK = "Unified-Bench protocol 2"

TEXT = 4000
"""Characters shown of an answer."""

_RATES = {
    "win_rate": "win rate, ties as half",
    "win_rate_without_ties": "without ties",
    "first_position": "A chosen",
    "win_rate_shown_first": "shown first",
    "win_rate_shown_second": "shown second",
}
_COUNTS = ("judged", "wins", "losses", "ties", "inconsistent", "failed")

#: What a picture counts in the win rate; a loss counts nothing.
_POINTS = {WIN: 1.0, TIE: 0.5, INCONSISTENT: 0.5}


def rate(numerator_N: Sequence[float], denominator_N: Sequence[float], seed: int, resamples: int) -> dict[str, Any]:
    """A ratio of sums over pictures, times 100, with a percentile bootstrap interval over pictures.

    Returns:
        ``value`` (None where the denominator is 0), ``numerator``, ``denominator``, ``interval`` (None likewise) and
        ``undefined_resamples``: those whose denominator is 0, which the interval leaves out.
    """
    top, bottom = float(sum(numerator_N)), float(sum(denominator_N))
    found: dict[str, Any] = {"value": None, "numerator": top, "denominator": bottom, "interval": None}
    if bottom == 0:
        return found | {"undefined_resamples": 0}
    means_R2 = resampled_means(np.array([numerator_N, denominator_N], dtype=np.float64).T, seed, resamples)
    defined_R2 = means_R2[means_R2[:, 1] > 0]
    between = interval(100.0 * defined_R2[:, 0] / defined_R2[:, 1])
    undefined = len(means_R2) - len(defined_R2)
    return found | {"value": 100.0 * top / bottom, "interval": between, "undefined_resamples": undefined}


def win_rates(kinds: Sequence[str], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Counts of outcomes of the first candidate and the rates made of them; failed pictures count in no rate."""
    counts = Counter(kinds)
    judged = [kind for kind in kinds if kind != FAILED]
    points = [_POINTS.get(kind, 0.0) for kind in judged]
    won, decided = ([float(kind in wanted) for kind in judged] for wanted in ((WIN,), (WIN, LOSS)))
    return {
        "pictures": len(kinds),
        "judged": len(judged),
        "wins": counts[WIN],
        "losses": counts[LOSS],
        "ties": counts[TIE],
        "inconsistent": counts[INCONSISTENT],
        "failed": counts[FAILED],
        "win_rate": rate(points, [1.0] * len(judged), seed, resamples),
        "win_rate_without_ties": rate(won, decided, seed, resamples),
    }


def position_rates(outcomes: Sequence[JudgeOutcome], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """What the order does, over the pictures with both answers; answers "tie" count in no rate.

    Returns:
        ``first_position``: answers that chose A, which is 50 for a judge that does not look at the order, and 100 for
        one that looks at nothing else. ``win_rate_shown_first`` and ``win_rate_shown_second``: how often the first
        candidate is chosen where it is A, or B; what a protocol without swap would report.
    """
    choices = [outcome.choices for outcome in outcomes if outcome.judged and outcome.answers]

    def share(wanted: Mapping[int, str]) -> dict[str, Any]:
        """Of the answers of the orders named, those that chose the letter named."""
        chosen = [float(sum(pair[order] == letter for order, letter in wanted.items())) for pair in choices]
        decided = [float(sum(pair[order] in (A, B) for order in wanted)) for pair in choices]
        return rate(chosen, decided, seed, resamples)

    return {
        "first_position": share({0: A, 1: A}),
        "win_rate_shown_first": share({0: A}),
        "win_rate_shown_second": share({1: B}),
    }


def mean_scores(outcomes: Sequence[JudgeOutcome]) -> dict[str, dict[str, float]]:
    """Means of the judge's scores of 1 to 10 over the answers that have them, both orders, of pictures judged.

    Returns:
        By criterion ``first``, ``second`` and ``answers``, the number of answers averaged.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        for answer, (first, second) in zip(outcome.answers, ((A, B), (B, A)), strict=False):
            scores = answer.verdict.scores if outcome.judged and answer.verdict is not None else {}
            for name in scores.get(A, ()):
                found.setdefault(name, []).append((scores[first][name], scores[second][name]))
    return {
        name: {**dict(zip(("first", "second"), np.mean(pairs, axis=0).tolist(), strict=True)), "answers": len(pairs)}
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
    ours, theirs = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(ours[kind] * theirs[kind] for kind in ours) / max(1, len(pairs)) ** 2
    return _beyond_chance(len(pairs), sum(one == other for one, other in pairs) / max(1, len(pairs)), chance)


def fleiss_kappa(kinds_JN: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Agreement of all judges beyond chance (Fleiss 1971), over the pictures that all judged; keys as `cohen_kappa`."""
    rows = [Counter(map(vote, column)) for column in zip(*kinds_JN, strict=True) if FAILED not in column]
    count = len(kinds_JN)
    pairs = max(1, len(rows) * count * (count - 1))
    observed = sum(n * (n - 1) for row in rows for n in row.values()) / pairs
    totals: Counter[str] = sum(rows, Counter())
    chance = sum((n / (len(rows) * count)) ** 2 for n in totals.values())
    return _beyond_chance(len(rows), observed if count > 1 else None, chance)


def _beyond_chance(pictures: int, observed: float | None, chance: float) -> dict[str, Any]:
    if not pictures or observed is None:
        return {"pictures": pictures, "agreement": None, "kappa": None}
    # Where everybody always says the same, nothing can be told from chance.
    kappa = None if chance >= 1.0 - 1e-12 else (observed - chance) / (1.0 - chance)
    return {"pictures": pictures, "agreement": observed, "kappa": kappa}


def judge_result(
    judged: Judged, prompt: JudgePrompt, *, side: int, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Everything that was found out, with pictures that were sent with ``side`` pixels at most."""
    contest = judged.contest
    failures = _failures(judged)
    kinds = {name: [outcome.kind for outcome in found.values()] for name, found in judged.outcomes.items()}
    by_judge = {judge.name: _summary(judge, judged, seed, resamples) for judge in judged.judges}
    rates = [entry["win_rate"]["value"] for entry in by_judge.values() if entry["win_rate"]["value"] is not None]
    mean = sum(rates) / len(rates) if rates else None
    overall_interval = None
    if not failures:
        # A picture keeps the outcomes of all judges together.
        points_NJ = np.array([[_POINTS.get(kind, 0.0) for kind in column] for column in kinds.values()]).T
        overall_interval = interval(100.0 * resampled_means(points_NJ, seed, resamples).mean(axis=1))
    vote_rates = win_rates([majority(column) for column in zip(*kinds.values(), strict=True)], seed, resamples)
    # Judges that disagree and judges that say "tie" come to the same here, and no position is left.
    del vote_rates["inconsistent"]
    return {
        "format": FORMAT,
        "benchmark": BENCHMARK,
        "mode": contest.mode,
        "candidates": dict(zip(("first", "second"), contest.names, strict=True)),
        "paths": dict(zip(("first", "second"), contest.paths, strict=True)),
        "complete": not failures,
        "overall": None if failures else mean,
        "overall_interval": overall_interval,
        "partial_overall": mean if failures else None,
        "judges": by_judge,
        "majority": vote_rates,
        "agreement": {
            "cohen": {f"{a} and {b}": cohen_kappa(kinds[a], kinds[b]) for a, b in itertools.combinations(kinds, 2)},
            "fleiss": fleiss_kappa(list(kinds.values())) if len(kinds) > 1 else None,
        },
        "failures": [asdict(failure) for failure in failures],
        "references": reference_digest(comparison.source.digest for comparison in contest.comparisons),
        "pictures": contest.pictures,
        "pairs": [_pair_entry(judged, comparison) for comparison in contest.comparisons],
        "prompt": {"name": prompt.name, "sha256": prompt.digest, "text": prompt.text},
        "sent": {
            "requests": judged.requests,
            "from_cache": judged.cached,
            "damaged_cache_lines": judged.damaged,
            "side": side,
        },
        "seeds": {
            "bootstrap": seed,
            "bootstrap_generator": f"verl_uae.seeding.generator({seed}, {PURPOSE!r}, number of pictures)",
            "level": LEVEL,
            "resamples": resamples,
        },
        "versions": versions(),
    }


def _failures(judged: Judged) -> list[Failure]:
    return [
        *judged.contest.failures,
        *(
            Failure(f"{name}: {key} ({'swapped' if swapped else 'in order'})", answer.reason)
            for name, found in judged.outcomes.items()
            for key, outcome in found.items()
            for answer, swapped in zip(outcome.answers, ORDERS, strict=False)
            if answer.verdict is None
        ),
    ]


def _summary(judge: Judge, judged: Judged, seed: int, resamples: int) -> dict[str, Any]:
    outcomes = list(judged.outcomes[judge.name].values())
    kinds = [outcome.kind for outcome in outcomes]
    rates = win_rates(kinds, seed, resamples)
    if FAILED in kinds and not any(outcome.judged and outcome.answers for outcome in outcomes):
        # Of a judge that gave no verdict the ties of identical candidates would be made a rate.
        rates |= dict.fromkeys(("win_rate", "win_rate_without_ties"), rate([], [], seed, resamples))
    return {
        "base_url": judge.base_url,
        **judge.settings(),
        "complete": FAILED not in kinds and not judged.contest.failures,
        **rates,
        "identical": sum(outcome.kind == TIE and not outcome.answers for outcome in outcomes),
        **position_rates(outcomes, seed, resamples),
        "scores": mean_scores(outcomes),
    }


def _pair_entry(judged: Judged, comparison: Comparison) -> dict[str, Any]:
    contents = {
        name: {"caption": content, "words": len(content.split())}
        if isinstance(content, str)
        else {"picture": content.path.name, "sha256": content.digest}
        for name, content in (("first", comparison.first), ("second", comparison.second))
    }
    verdicts = {}
    for name, found in judged.outcomes.items():
        outcome = found[comparison.key]
        reasons = [answer.reason or None for answer in outcome.answers]
        verdicts[name] = {"outcome": outcome.kind, "choices": list(outcome.choices), "reasons": reasons}
    return {"reference": comparison.key, "sha256": comparison.source.digest, **contents, "verdicts": verdicts}


def mean_words(content: Mapping[str, Any]) -> list[float] | None:
    """Words per caption of both candidates; None for pictures."""
    if content["mode"] != CAPTION:
        return None
    pairs = content["pairs"]
    return [sum(pair[name]["words"] for pair in pairs) / len(pairs) for name in ("first", "second")]


def write_report(
    path: Path, content: Mapping[str, Any], judged: Judged, count: int = 6, command: str | None = None
) -> None:
    """Write a result as one HTML file: rates, agreement, and pictures of each kind with the verdicts on them.

    Args:
        judged: what it was made of; has the answers.
        count: how many pictures to show of each kind.
        command: that made the result.
    """
    agreement = dict(content["agreement"]["cohen"])
    if len(agreement) > 1:
        agreement["all judges (Fleiss)"] = content["agreement"]["fleiss"]
    rows = [
        [name, *(entry.get(key, "") for key in _COUNTS), *(rate_text(entry.get(key)) for key in _RATES)]
        for name, entry in (*content["judges"].items(), ("majority", content["majority"]))
    ]
    page = render_page(
        "judge.html",
        **{**content, **content["candidates"], "agreement": agreement},
        title=content["benchmark"],
        heading=f"{content['benchmark']}: {content['mode']}",
        side=REPORT_SIDE,
        missing="rate",
        most=50,
        columns=[*_COUNTS, *_RATES.values()],
        rows=rows,
        words=mean_words(content),
        shown=_shown(judged, count),
        longest=TEXT,
        **made(content["sent"], content, command),
    )
    write_text(path, page)


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """A rate with its fraction and interval; nothing where it is not defined."""
    if rate is None or rate["value"] is None:
        return ""
    low, high = rate["interval"]
    return f"{rate['value']:.1f}% = {rate['numerator']:g}/{rate['denominator']:g} ({low:.1f} to {high:.1f})"


def _shown(judged: Judged, count: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings, and what is shown below them."""
    first, second = judged.contest.names
    titles = {
        WIN: f"Most judges prefer {first}",
        LOSS: f"Most judges prefer {second}",
        TIE: "No majority, or a tie",
        INCONSISTENT: "Every judge follows the position",
        FAILED: "Not judged by all",
    }
    by_kind: dict[str, list[Comparison]] = {kind: [] for kind in titles}
    for comparison in judged.contest.comparisons:
        kinds = [found[comparison.key].kind for found in judged.outcomes.values()]
        by_kind[INCONSISTENT if set(kinds) == {INCONSISTENT} else majority(kinds)].append(comparison)
    return [
        (f"{titles[kind]}: {len(found)}", [_details(comparison, judged) for comparison in found[:count]])
        for kind, found in by_kind.items()
        if found
    ]


def _details(comparison: Comparison, judged: Judged) -> dict[str, Any]:
    """What the page shows of a picture; where a file no longer decodes, why."""
    contents = dict(zip(judged.contest.names, (comparison.first, comparison.second), strict=True))
    pictures: list[tuple[str, str | None, str]] = []
    for name, content in {"original": comparison.source, **contents}.items():
        try:
            if not isinstance(content, str):
                pictures.append((name, data_uri(decode_image(content.path), REPORT_SIDE), ""))
        except DecodeError as error:
            pictures.append((name, None, str(error)))
    return {
        "key": comparison.key,
        "pictures": pictures,
        "captions": [(name, content) for name, content in contents.items() if isinstance(content, str)],
        "outcomes": [(name, found[comparison.key]) for name, found in judged.outcomes.items()],
    }
