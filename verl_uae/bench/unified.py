# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Protocol 1 of Unified-Bench (arXiv 2509.09666): similarity of pictures and their reconstructions.

For each of four backbones the mean over pairs of the cosine of features; the overall score is the plain mean of the
four, times 100. The official scorer leaves out what fails, pairs and backbones alike, and goes on; here a result that
lacks anything has no overall score.

Shape legend: N pairs, K backbones, B pairs of a batch, D features, R resamples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verl_uae.bench.backbones import PROTOCOL, Backbone, ImageEncoder
from verl_uae.bench.pairs import Pairing, PicturePair
from verl_uae.bench.results import (
    LEVEL,
    PURPOSE,
    RESAMPLES,
    Failure,
    interval,
    made,
    read_result,
    resampled_means,
    versions,
)
from verl_uae.data.images import decode_image
from verl_uae.errors import UAEError
from verl_uae.files import write_text
from verl_uae.pages import data_uri, render_page
from verl_uae.reward.record import describe_error
from verl_uae.reward.terms.features import cosine

FORMAT = 1
BENCHMARK = "Unified-Bench protocol 1"
SECTION = "verl_uae"

#: The backbone that the paper trains on; a score without it is held out.
REWARD_BACKBONE = "clip"

REPORT_SIDE = 320
"""Longest side of a picture in a report, pixels."""

#: Told (backbone, pairs done, all pairs).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """Similarities of pairs."""

    pairing: Pairing
    asked: tuple[str, ...]
    """Names of the backbones that were to be used."""
    similarities: Mapping[str, Mapping[str, float | None]]
    """By backbone and name of the generated picture, in [-1, 1]; None without a value. Failed backbones are absent."""
    models: Mapping[str, Mapping[str, str | None]]
    """What was loaded under each name."""
    failures: tuple[Failure, ...]
    """All of them, those of the pairing included."""


def score(
    pairing: Pairing,
    backbones: Sequence[Backbone],
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    on_progress: Progress = lambda what, done, count: None,
) -> Scores:
    """Compare the pictures of each pair, one backbone after the other.

    A backbone that does not load or run costs only its own values; it and every backbone of the protocol that is not
    among ``backbones`` is a failure of the result. ``batch_size`` pairs are encoded together.
    """
    similarities: dict[str, Mapping[str, float | None]] = {}
    models: dict[str, Mapping[str, str | None]] = {}
    failures = list(pairing.failures)
    for backbone in backbones:
        try:
            encoder = ImageEncoder(backbone, device)
            values = dict(_compare(encoder, pairing.pairs, batch_size, on_progress))
        # Out of memory, or a processor that does not suit: hours of the other backbones must not be lost for it.
        except (UAEError, RuntimeError, ValueError, TypeError, LookupError, OSError, MemoryError) as error:
            reason = " ".join(str(error).split()) if isinstance(error, UAEError) else describe_error(error)
            failures.append(Failure(backbone.name, reason))
            continue
        lost = [name for name, value in values.items() if value is None]
        failures += [Failure(f"{name} ({backbone.name})", "a feature is zero or not finite") for name in lost]
        similarities[backbone.name] = {**values, **dict.fromkeys(pairing.unpaired)}
        models[backbone.name] = encoder.describe()
    asked = tuple(backbone.name for backbone in backbones)
    failures += [Failure(name, "not asked for") for name in PROTOCOL if name not in asked]
    return Scores(pairing, asked, similarities, models, tuple(failures))


def _compare(
    encoder: ImageEncoder, pairs: Sequence[PicturePair], batch_size: int, on_progress: Progress
) -> Iterator[tuple[str, float | None]]:
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        original_BD = encoder.encode([decode_image(pair.reference) for pair in batch])
        drawn_BD = encoder.encode([decode_image(pair.generated) for pair in batch])
        for pair, value in zip(batch, cosine(original_BD, drawn_BD).tolist(), strict=True):
            yield pair.name, value if math.isfinite(value) else None
        on_progress(encoder.backbone.name, start + len(batch), len(pairs))


def official_result(scores: Scores) -> dict[str, Any]:
    """The official scorer's JSON; all values are cosines in [-1, 1], and ``overall_average`` covers what there is."""
    statistics: dict[str, dict[str, float]] = {}
    for name, values in scores.similarities.items():
        valid = [value for value in values.values() if value is not None]
        if valid:
            statistics[name] = {
                "total_images": len(values),
                "valid_pairs": len(valid),
                "average_similarity": sum(valid) / len(valid),
                "min_similarity": min(valid),
                "max_similarity": max(valid),
            }
    means = {name: entry["average_similarity"] for name, entry in statistics.items()}
    summary: dict[str, Any] = {}
    if means:
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        summary = {
            "models_used": list(means),
            "average_scores_by_model": means,
            "overall_average": sum(means.values()) / len(means),
            "best_model": [best, means[best]],
            "worst_model": [worst, means[worst]],
        }
    return {
        "model_types": list(scores.asked),
        "similarities_by_model": {name: dict(values) for name, values in scores.similarities.items()},
        "statistics_by_model": statistics,
        "summary": summary,
    }


def unified_result(
    scores: Scores,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    captions: Mapping[str, str] | None = None,
    drawing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The official scorer's JSON, and under ``verl_uae`` what it lacks. Scores there are times 100.

    Args:
        captions: by `PicturePair.key`, where there are any.
        drawing: how the pictures were generated, where that is known.
    """
    official = official_result(scores)
    means = {name: 100.0 * value for name, value in official["summary"].get("average_scores_by_model", {}).items()}
    complete = not scores.failures and means.keys() == PROTOCOL.keys()
    overall = sum(means.values()) / len(means) if means else None
    held_out = [value for name, value in means.items() if name != REWARD_BACKBONE]
    pairs: list[dict[str, Any]] = []
    for pair in scores.pairing.pairs:
        caption = (captions or {}).get(pair.key)
        about = {"name": pair.name, "reference": pair.key, "sha256": pair.digest, "caption": caption}
        pairs.append({**about, "words": None if caption is None else len(caption.split())})
    words = [pair["words"] for pair in pairs]
    section = {
        "format": FORMAT,
        "benchmark": BENCHMARK,
        "complete": complete,
        "overall": overall if complete else None,
        "partial_overall": None if complete else overall,
        "held_out": sum(held_out) / len(held_out) if complete else None,
        "means": means,
        "confidence_intervals": _intervals(scores, complete, seed, resamples),
        "mean_words": sum(words) / len(words) if words and None not in words else None,
        "failures": [asdict(failure) for failure in scores.failures],
        "models": {name: dict(entry) for name, entry in scores.models.items()},
        "references": reference_digest(pair.digest for pair in scores.pairing.pairs),
        "pairs": pairs,
        "drawing": None if drawing is None else dict(drawing),
        "seeds": {
            "bootstrap": seed,
            "bootstrap_generator": f"verl_uae.seeding.generator({seed}, {PURPOSE!r}, number of pairs)",
        },
        "versions": versions(),
    }
    return {**official, SECTION: section}


def _intervals(scores: Scores, complete: bool, seed: int, resamples: int) -> dict[str, Any]:
    columns = {
        name: np.array([[value] for value in values.values() if value is not None], dtype=np.float64)
        for name, values in scores.similarities.items()
    }
    means = {
        name: 100.0 * resampled_means(found, seed, resamples)[:, 0] for name, found in columns.items() if len(found)
    }
    overall = held_out = None
    if complete:
        # The same rows are drawn of every column.
        overall = interval(np.mean(list(means.values()), axis=0))
        held_out = interval(np.mean([mean for name, mean in means.items() if name != REWARD_BACKBONE], axis=0))
    by_model = {name: interval(mean) for name, mean in means.items()}
    return {"level": LEVEL, "resamples": resamples, "by_model": by_model, "overall": overall, "held_out": held_out}


def reference_digest(digests: Iterator[str]) -> str:
    """SHA-256 of the set of reference pictures: equal for results over the same ones."""
    return sha256("\n".join(sorted(digests)).encode()).hexdigest()


def read_unified(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A result file of this protocol; DataError for another."""
    return read_result(path, BENCHMARK, FORMAT, SECTION)


def differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps results from being compared, as what they are not: over the same pictures, from the same backbones."""
    found = []
    if len({content[SECTION]["references"] for content in results}) > 1:
        found.append("over the same pictures and do not compare")
    if len({repr(sorted(content[SECTION]["models"].items())) for content in results}) > 1:
        found.append("from the same backbones")
    return found


def write_report(
    path: Path, content: Mapping[str, Any], pairs: Sequence[PicturePair], count: int = 8, command: str | None = None
) -> None:
    """Write a result as one HTML file that loads nothing: scores, failures, worst and best pairs.

    Args:
        path: of the page.
        content: the result.
        pairs: pictures that it is about.
        count: how many of the worst and of the best pairs are shown; fewer if they would meet.
        command: that made the result.
    """
    section = content[SECTION]
    bounds = section["confidence_intervals"]
    scores = []
    for name, mean in section["means"].items():
        found = content["statistics_by_model"][name]
        valid = f"{found['valid_pairs']} of {found['total_images']}"
        scores.append((PROTOCOL[name].title, mean, bounds["by_model"].get(name), valid))
    if section["complete"]:
        scores.append(("Overall", section["overall"], bounds["overall"], ""))
        scores.append(("Held out (without CLIP)", section["held_out"], bounds["held_out"], ""))
    ranked = rank(content)
    most = min(count, (len(ranked) + 1) // 2)
    by_name = {pair.name: pair for pair in pairs}
    captions = {pair["name"]: pair["caption"] for pair in section["pairs"]}

    def shown(names: Sequence[tuple[str, float]]) -> Iterator[dict[str, Any]]:
        for name, mean in names:
            pair, tables = by_name[name], content["similarities_by_model"].items()
            each = ", ".join(f"{PROTOCOL[backbone].title} {100.0 * table[name]:.2f}" for backbone, table in tables)
            original, drawn = (data_uri(decode_image(path), REPORT_SIDE) for path in (pair.reference, pair.generated))
            about = {"key": pair.key, "mean": 100.0 * mean, "scores": each, "caption": captions[name]}
            yield {**about, "original": original, "drawn": drawn}

    page = render_page(
        "unified.html",
        **section,
        title=section["benchmark"],
        heading=section["benchmark"],
        side=REPORT_SIDE,
        scores=scores,
        missing="score",
        most=len(section["failures"]),
        **made(section["drawing"] or {}, section, command),
        shown=[("Worst pairs", shown(ranked[:most])), ("Best pairs", shown(ranked[most:][::-1][:most]))],
    )
    write_text(path, page)


def rank(content: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names of pairs and the mean of their similarities, worst first; pairs that lack a value are left out."""
    tables = list(content["similarities_by_model"].values())
    found = []
    for pair in content[SECTION]["pairs"]:
        values = [table.get(pair["name"]) for table in tables]
        if values and None not in values:
            found.append((pair["name"], sum(values) / len(values)))
    return sorted(found, key=lambda item: (item[1], item[0]))
