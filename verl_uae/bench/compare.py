# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results of protocol 1 side by side, on captions of equal length, and as published.

Is it the caption or its length? Captions of the one result are matched with captions of the other by their number of
words: nearest first, each used once, none farther apart than a tolerance (greedy matching without replacement within a
caliper, as for propensity scores). Where distances tie, captions of the same picture go first. Matched captions mostly
belong to different pictures, but most pictures stand on both sides, each with another: how hard a picture is cancels in
the difference of the two matched means. So the bootstrap draws pictures, each with its captions on either side, and not
matches, whose differences are not independent of each other; what a line over the length explains is held fixed, as
matching holds it. `same_picture` compares each picture with itself, on those whose two captions are about equally long.

Shape legend: P pictures, K backbones, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_uae.bench.backbones import PROTOCOL
from verl_uae.bench.results import (
    LEVEL,
    NOTHING,
    RESAMPLES,
    between,
    escaped,
    incomplete,
    interval,
    markdown_table,
    number,
    resampled_means,
    with_notes,
)
from verl_uae.bench.unified import REWARD_BACKBONE, SECTION, differences
from verl_uae.errors import ConfigError

TOLERANCE = 5
"""Largest difference of matched captions, words."""


def comparison_table(results: Mapping[str, Mapping[str, Any]], tolerance: int | None = None, seed: int = 0) -> str:
    """One row per result.

    Columns: pairs, the mean of each backbone, the overall score with its 95% interval, the mean of the backbones other
    than CLIP (CLIP is what UAE trains on), and words per caption. An incomplete result has no overall score; what its
    backbones give is marked with ``*`` where pairs are missing, and a note below says what failed.

    With a tolerance (words) there are two more: how far the row lies above the first one on captions of equal length
    (:func:`compare_lengths`), overall and without CLIP, with 95% interval and number of matches.
    """
    titles = [backbone.title for backbone in PROTOCOL.values()]
    head = ["result", "pairs", *titles, "overall", "95% interval", "held out (without CLIP)", "words"]
    rows = [_cells(name, content) for name, content in results.items()]
    if tolerance is not None:
        first = next(iter(results))
        above = f"minus {escaped(first)}, lengths matched"
        head += [above, f"{above}, held out"]
        for row, (name, content) in zip(rows, results.items(), strict=True):
            row += [NOTHING] * 2 if name == first else _matched(content, results[first], tolerance, seed)
    notes = [incomplete(name, found) for name, content in results.items() if (found := content[SECTION]["failures"])]
    notes += [f"* The rows are not {what}." for what in differences(list(results.values()))]
    return with_notes(markdown_table(head, rows), notes)


def _cells(name: str, content: Mapping[str, Any]) -> list[str]:
    section = content[SECTION]
    means = []
    for backbone in PROTOCOL:
        found = content["statistics_by_model"].get(backbone)
        mark = "*" if found and found["valid_pairs"] < found["total_images"] else ""
        means.append(number(section["means"].get(backbone)) + mark)
    overall = number(section["overall"])
    if not section["complete"] and section["partial_overall"] is not None:
        overall = f"{NOTHING} (partial: {section['partial_overall']:.2f})"
    bounds = between(section["confidence_intervals"]["overall"])
    words = number(section["mean_words"], ".1f")
    return [escaped(name), str(len(section["pairs"])), *means, overall, bounds, number(section["held_out"]), words]


def _matched(content: Mapping[str, Any], first: Mapping[str, Any], tolerance: int, seed: int) -> list[str]:
    try:
        found = compare_lengths(content, first, tolerance=tolerance, seed=seed)
    except ConfigError:
        # No captions, or none of equal length: nothing to say in this row, where the others have something.
        return [NOTHING] * 2
    entries = [found["difference"].get(name) for name in ("overall", "held_out")]
    return [
        f"{entry['mean']:+.2f} ({between(entry['interval'], '+.2f')}; {found['matched']})" if entry else NOTHING
        for entry in entries
    ]


@dataclass(frozen=True, slots=True)
class Captioned:
    """A pair with a caption and a value of every backbone compared."""

    digest: str
    """Of the reference picture."""
    words: int
    values: tuple[float, ...]
    """Similarity times 100 per backbone."""


def match_lengths(
    a: Sequence[Captioned], b: Sequence[Captioned], tolerance: int, *, same_picture: bool = False
) -> list[tuple[int, int]]:
    """Matches as positions in ``a`` and ``b``, whose words differ by at most the tolerance."""
    candidates = [
        (distance, one.digest != other.digest, i, j)
        for i, one in enumerate(a)
        for j, other in enumerate(b)
        if (distance := abs(one.words - other.words)) <= tolerance and (not same_picture or one.digest == other.digest)
    ]
    matches: dict[int, int] = {}
    used: set[int] = set()
    for _, _, i, j in sorted(candidates):
        if i not in matches and j not in used:
            matches[i] = j
            used.add(j)
    return list(matches.items())


def compare_lengths(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    tolerance: int = TOLERANCE,
    same_picture: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The difference a - b on matched captions, with bootstrap intervals over pictures; scores are times 100.

    Args:
        a, b: results with captions.
        tolerance: largest difference, words.
        same_picture: match captions of one picture only.

    Returns:
        ``matched`` (number, and of which with the same picture), ``mean_words`` of both before and after matching,
        ``not`` (what keeps the two from being compared), ``all`` (differences of the plain means, before matching) and
        ``difference`` (per backbone, the mean of them as ``overall`` if all four are there, and without CLIP as
        ``held_out``).

    Raises:
        ConfigError: a result has no captions, they share no backbone, or nothing matches.
    """
    if tolerance < 0:
        raise ConfigError("--tolerance", f"must be at least 0 words, got {tolerance}")
    names = [name for name in a["statistics_by_model"] if name in b["statistics_by_model"]]
    if not names:
        raise ConfigError("results", "have no backbone in common")
    ours, theirs = captioned(a, names), captioned(b, names)
    if not ours or not theirs:
        raise ConfigError("results", "need captions: draw with --model, or pass --captions with ready pictures")
    matches = match_lengths(ours, theirs, tolerance, same_picture=same_picture)
    if not matches:
        raise ConfigError("--tolerance", f"no two captions are within {tolerance} words of each other")
    matched = [ours[i] for i, _ in matches], [theirs[j] for _, j in matches]

    def named(values_XK: np.ndarray) -> dict[str, Any]:
        """Columns by name, with the means over all and over the held-out ones."""
        columns = {name: values_XK[..., index] for index, name in enumerate(names)}
        if a[SECTION]["complete"] and b[SECTION]["complete"]:
            others = [index for index, name in enumerate(names) if name != REWARD_BACKBONE]
            columns |= {"overall": values_XK.mean(axis=-1), "held_out": values_XK[..., others].mean(axis=-1)}
        return columns

    plain, on_matched = (named(_means(first) - _means(second)) for first, second in ((ours, theirs), matched))
    samples = named(_resampled_differences(*matched, seed, resamples))
    return {
        "tolerance": tolerance,
        "same_picture": same_picture,
        "captions": [len(ours), len(theirs)],
        "matched": len(matches),
        "matched_same_picture": sum(ours[i].digest == theirs[j].digest for i, j in matches),
        "not": differences([a, b]),
        "mean_words": {
            name: [float(np.mean([item.words for item in side])) for side in sides]
            for name, sides in (("all", (ours, theirs)), ("matched", matched))
        },
        "all": {name: float(value) for name, value in plain.items()},
        "difference": {
            name: {"mean": float(value), "interval": interval(samples[name])} for name, value in on_matched.items()
        },
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
    }


def captioned(content: Mapping[str, Any], backbones: Sequence[str]) -> list[Captioned]:
    """The pairs of a result that have a caption and a value of each backbone."""
    found = []
    for pair in content[SECTION]["pairs"]:
        values = [content["similarities_by_model"][name].get(pair["name"]) for name in backbones]
        if pair["words"] is not None and None not in values:
            found.append(Captioned(pair["sha256"], pair["words"], tuple(100.0 * value for value in values)))
    return found


def _means(items: Sequence[Captioned]) -> np.ndarray:
    return np.mean([item.values for item in items], axis=0)


def _resampled_differences(
    ours: Sequence[Captioned], theirs: Sequence[Captioned], seed: int, resamples: int
) -> np.ndarray:
    """Differences (R, K) of the means of both sides over pictures drawn with replacement.

    What a line over the number of words explains is held fixed: matched captions are equally long, so it cancels in
    the difference, but not in a resample whose pictures have a long caption on one side and a short one on the other.
    Resamples in which a side has no picture are left out.
    """
    place = {digest: index for index, digest in enumerate(dict.fromkeys(item.digest for item in [*ours, *theirs]))}
    sides = [np.array([item.values for item in side]) for side in (ours, theirs)]
    words = [np.array([item.words for item in side], dtype=np.float64) for side in (ours, theirs)]
    spread = [column - column.mean() for column in words]
    square = sum(float(column @ column) for column in spread)
    products = sum(column @ values for column, values in zip(spread, sides, strict=True))
    slope_K = products / square if square > 0 else np.zeros(sides[0].shape[1])
    sums = []
    for side, column, values in zip((ours, theirs), words, sides, strict=True):
        # Per picture the sum of its values without the line, and how many there are.
        rest = np.column_stack([values - np.outer(column, slope_K), np.ones(len(side))])
        sums_PX = np.zeros((len(place), rest.shape[1]))
        np.add.at(sums_PX, [place[item.digest] for item in side], rest)
        sums.append(sums_PX)
    width = sums[0].shape[1]
    means_RX = resampled_means(np.hstack(sums), seed, resamples)
    first_RX, second_RX = means_RX[:, :width], means_RX[:, width:]
    there_R = (first_RX[:, -1] > 0) & (second_RX[:, -1] > 0)
    first_RX, second_RX = first_RX[there_R], second_RX[there_R]
    rest_RK = first_RX[:, :-1] / first_RX[:, -1:] - second_RX[:, :-1] / second_RX[:, -1:]
    return rest_RK + (words[0].mean() - words[1].mean()) * slope_K


def length_table(comparison: Mapping[str, Any]) -> str:
    """What :func:`compare_lengths` returned, as Markdown."""
    words = comparison["mean_words"]
    summary = (
        f"{comparison['matched']} of {comparison['captions'][0]} and {comparison['captions'][1]} captions matched "
        f"within {comparison['tolerance']} words, {comparison['matched_same_picture']} of them of the same picture. "
        f"Mean words: {words['all'][0]:.1f} and {words['all'][1]:.1f} before, "
        f"{words['matched'][0]:.1f} and {words['matched'][1]:.1f} after."
    )
    rows = [
        [name, f"{comparison['all'][name]:+.2f}", f"{entry['mean']:+.2f}", between(entry["interval"], "+.2f")]
        for name, entry in comparison["difference"].items()
    ]
    table = markdown_table(["first minus second", "all", "matched", "95% interval"], rows)
    return with_notes([summary, "", *table], [f"* The two are not {what}." for what in comparison["not"]])


SOURCE = "arXiv 2509.09666v5"

_ROUNDING = 0.01
"""Four means and their mean, each rounded to 0.01, differ by at most this much."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row of a table of the paper; similarities times 100."""

    table: int
    model: str
    columns: tuple[float, float, float, float]
    """In the order of `PROTOCOL`."""
    overall: float
    """As printed."""

    @property
    def recomputed(self) -> float:
        """Plain mean of the four columns, which is how the benchmark defines the overall score."""
        return sum(self.columns) / 4.0

    @property
    def adds_up(self) -> bool:
        """Whether the printed overall score is the mean of the columns."""
        return abs(self.recomputed - self.overall) <= _ROUNDING + 1e-9


PUBLISHED: tuple[PublishedRow, ...] = (
    # Table 2: 100 pictures.
    PublishedRow(2, "GPT-4o-Image", (90.42, 94.37, 81.74, 77.27), 85.95),
    PublishedRow(2, "BAGEL", (88.97, 93.35, 78.55, 73.05), 83.48),
    PublishedRow(2, "BLIP-3o", (84.84, 90.24, 68.31, 62.86), 76.56),
    PublishedRow(2, "Janus-Pro", (88.72, 93.45, 78.30, 70.61), 82.77),
    PublishedRow(2, "OmniGen2", (88.36, 93.11, 77.70, 74.07), 83.31),
    PublishedRow(2, "Show-o", (80.18, 86.75, 58.20, 51.51), 69.16),
    PublishedRow(2, "UniWorld-V1", (85.49, 91.53, 72.12, 66.83), 78.99),
    PublishedRow(2, "UAE", (90.50, 94.35, 81.98, 77.54), 86.09),
    # Table 3: the same pictures, other captioners, UAE's decoder.
    PublishedRow(3, "Qwen2.5-VL-3B", (88.34, 92.62, 73.91, 70.02), 80.85),
    PublishedRow(3, "Qwen2.5-VL-7B", (88.26, 92.89, 76.12, 70.96), 81.92),
    PublishedRow(3, "UAE", (90.50, 94.35, 81.98, 77.54), 86.09),
    # Table 10: 2,000 pictures.
    PublishedRow(10, "BAGEL", (87.57, 92.88, 80.11, 63.24), 80.95),
    PublishedRow(10, "GPT-Image", (91.37, 92.81, 86.41, 64.15), 83.69),
    PublishedRow(10, "UAE", (90.22, 94.49, 85.72, 68.54), 84.74),
)
