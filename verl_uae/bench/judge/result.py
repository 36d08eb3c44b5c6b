# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The result of protocol 2 as JSON. Rates are times 100 and of the first candidate."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verl_uae.bench.bootstrap import LEVEL, PURPOSE, RESAMPLES, interval, resampled_means
from verl_uae.bench.judge.contest import CAPTION, Item
from verl_uae.bench.judge.judges import Judge
from verl_uae.bench.judge.prompt import Prompt
from verl_uae.bench.judge.protocol import FAILED, INCONSISTENT, ORDERS, TIE, WIN, Judged, Outcome
from verl_uae.bench.judge.statistics import (
    cohen_kappa,
    fleiss_kappa,
    majority,
    mean_scores,
    position_rates,
    rate,
    win_rates,
)
from verl_uae.bench.pairs import Failure
from verl_uae.bench.unified import reference_digest, versions
from verl_uae.errors import DataError

FORMAT = 1
BENCHMARK = "Unified-Bench protocol 2"


def result(judged: Judged, prompt: Prompt, *, side: int, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
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
        "references": reference_digest(item.source.digest for item in contest.items),
        "pictures": contest.pictures,
        "pairs": [_pair_entry(judged, item) for item in contest.items],
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


def _pair_entry(judged: Judged, item: Item) -> dict[str, Any]:
    contents = {
        name: {"caption": content, "words": len(content.split())}
        if isinstance(content, str)
        else {"picture": content.path.name, "sha256": content.digest}
        for name, content in (("first", item.first), ("second", item.second))
    }
    verdicts = {name: _verdict_entry(found[item.key]) for name, found in judged.outcomes.items()}
    return {"reference": item.key, "sha256": item.source.digest, **contents, "verdicts": verdicts}


def _verdict_entry(outcome: Outcome) -> dict[str, Any]:
    reasons = [answer.reason or None for answer in outcome.answers]
    return {"outcome": outcome.kind, "choices": list(outcome.choices), "reasons": reasons}


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a result of this protocol.

    Raises:
        DataError: it is not one of this version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(os.fspath(path), None, f"cannot be read: {error}") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("benchmark")) != (FORMAT, BENCHMARK):
        raise DataError(os.fspath(path), None, f"is not a result of {BENCHMARK} by this version")
    return content


def mean_words(content: Mapping[str, Any]) -> tuple[float, float] | None:
    """Words per caption of both candidates; None for pictures."""
    if content["mode"] != CAPTION:
        return None
    pairs = content["pairs"]
    first, second = (sum(pair[name]["words"] for pair in pairs) / len(pairs) for name in ("first", "second"))
    return first, second
