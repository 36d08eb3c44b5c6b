# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The result of protocol 2, as JSON and as a page. Rates are times 100 and of the first candidate."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verl_uae.bench.judge.contest import CAPTION, Comparison, Picture
from verl_uae.bench.judge.judges import Judge
from verl_uae.bench.judge.protocol import FAILED, INCONSISTENT, LOSS, ORDERS, TIE, WIN, Judged, JudgeOutcome
from verl_uae.bench.judge.question import JudgePrompt
from verl_uae.bench.judge.statistics import (
    cohen_kappa,
    fleiss_kappa,
    majority,
    mean_scores,
    position_rates,
    rate,
    win_rates,
)
from verl_uae.bench.results import LEVEL, PURPOSE, RESAMPLES, Failure, interval, resampled_means, versions
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


def judge_result(
    judged: Judged, prompt: JudgePrompt, *, side: int, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Everything that was found out.

    Args:
        judged: from `judge_contest`.
        prompt: what was asked.
        side: longest side that pictures were sent with, pixels.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    contest = judged.contest
    failures = _failures(judged)
    complete = not failures
    kinds = {name: [outcome.kind for outcome in found.values()] for name, found in judged.outcomes.items()}
    by_judge = {judge.name: _summary(judge, judged, seed, resamples) for judge in judged.judges}
    rates = [entry["win_rate"]["value"] for entry in by_judge.values() if entry["win_rate"]["value"] is not None]
    mean = sum(rates) / len(rates) if rates else None
    votes = [majority(column) for column in zip(*kinds.values(), strict=True)]
    vote_rates = win_rates(votes, seed, resamples)
    # Judges that disagree and judges that say "tie" come to the same here, and no position is left.
    del vote_rates["inconsistent"]
    return {
        "format": FORMAT,
        "benchmark": BENCHMARK,
        "mode": contest.mode,
        "candidates": dict(zip(("first", "second"), contest.names, strict=True)),
        "paths": dict(zip(("first", "second"), contest.paths, strict=True)),
        "complete": complete,
        "overall": mean if complete else None,
        "overall_interval": _overall_interval(kinds, seed, resamples) if complete else None,
        "partial_overall": None if complete else mean,
        "judges": by_judge,
        "majority": vote_rates,
        "agreement": _agreement(kinds),
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
    failures = list(judged.contest.failures)
    for name, found in judged.outcomes.items():
        for key, outcome in found.items():
            for answer, swapped in zip(outcome.answers, ORDERS, strict=False):
                if answer.verdict is None:
                    order = "swapped" if swapped else "in order"
                    failures.append(Failure(f"{name}: {key} ({order})", answer.reason))
    return failures


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


def _overall_interval(kinds: Mapping[str, list[str]], seed: int, resamples: int) -> list[float]:
    """Over pictures; a picture keeps the outcomes of all judges together."""
    halves = {WIN: 1.0, TIE: 0.5, INCONSISTENT: 0.5}
    values_NJ = np.array([[halves.get(kind, 0.0) for kind in column] for column in kinds.values()]).T
    return interval(100.0 * resampled_means(values_NJ, seed, resamples).mean(axis=1))


def _agreement(kinds: Mapping[str, list[str]]) -> dict[str, Any]:
    pairs = {f"{a} and {b}": cohen_kappa(kinds[a], kinds[b]) for a, b in itertools.combinations(kinds, 2)}
    return {"cohen": pairs, "fleiss": fleiss_kappa(list(kinds.values())) if len(kinds) > 1 else None}


def _pair_entry(judged: Judged, comparison: Comparison) -> dict[str, Any]:
    contents = {
        name: {"caption": content, "words": len(content.split())}
        if isinstance(content, str)
        else {"picture": content.path.name, "sha256": content.digest}
        for name, content in (("first", comparison.first), ("second", comparison.second))
    }
    verdicts = {name: _verdict_entry(found[comparison.key]) for name, found in judged.outcomes.items()}
    return {"reference": comparison.key, "sha256": comparison.source.digest, **contents, "verdicts": verdicts}


def _verdict_entry(outcome: JudgeOutcome) -> dict[str, Any]:
    reasons = [answer.reason or None for answer in outcome.answers]
    return {"outcome": outcome.kind, "choices": list(outcome.choices), "reasons": reasons}


def mean_words(content: Mapping[str, Any]) -> tuple[float, float] | None:
    """Words per caption of both candidates; None for pictures."""
    if content["mode"] != CAPTION:
        return None
    pairs = content["pairs"]
    first, second = (sum(pair[name]["words"] for pair in pairs) / len(pairs) for name in ("first", "second"))
    return first, second


def write_report(path: Path, content: Mapping[str, Any], judged: Judged, count: int = 6) -> None:
    """Write a result as one HTML file: rates, agreement, and pictures of each kind with the verdicts on them.

    Args:
        path: file to write.
        content: the result.
        judged: what it was made of; has the answers.
        count: how many pictures to show of each kind.
    """
    first, second = judged.contest.names
    agreement = dict(content["agreement"]["cohen"])
    if len(agreement) > 1:
        agreement["all judges (Fleiss)"] = content["agreement"]["fleiss"]
    page = render_page(
        "judge.html",
        title=content["benchmark"],
        heading=f"{content['benchmark']}: {content['mode']}",
        side=REPORT_SIDE,
        first=first,
        second=second,
        failures=content["failures"],
        missing="rate",
        most=50,
        columns=[*_COUNTS, *_RATES.values()],
        rows=[_row(name, entry) for name, entry in (*content["judges"].items(), ("majority", content["majority"]))],
        overall=content["overall"],
        interval=content["overall_interval"],
        agreement=agreement,
        words=mean_words(content),
        shown=_shown(judged, count),
        prompt=content["prompt"],
        longest=TEXT,
    )
    write_text(path, page)


def _row(name: str, entry: Mapping[str, Any]) -> list[Any]:
    return [name, *(entry.get(key, "") for key in _COUNTS), *(rate_text(entry.get(key)) for key in _RATES)]


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
    contents = dict(zip(judged.contest.names, (comparison.first, comparison.second), strict=True))
    pictures = {"original": comparison.source} | {
        name: content for name, content in contents.items() if not isinstance(content, str)
    }
    return {
        "key": comparison.key,
        "pictures": [(name, *_uri(picture)) for name, picture in pictures.items()],
        "captions": [(name, content) for name, content in contents.items() if isinstance(content, str)],
        "outcomes": [(name, found[comparison.key]) for name, found in judged.outcomes.items()],
    }


def _uri(picture: Picture) -> tuple[str | None, str]:
    """The picture, or why there is none."""
    try:
        return data_uri(decode_image(picture.path), REPORT_SIDE), ""
    except DecodeError as error:
        return None, str(error)
