# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results side by side as a Markdown table: captioners with one decoder, decoders with one captioner, models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_uae.bench.backbones import PROTOCOL
from verl_uae.bench.length import compare_lengths
from verl_uae.bench.unified import SECTION, differences
from verl_uae.errors import ConfigError

NOTHING = "–"


def compare(results: Mapping[str, Mapping[str, Any]], tolerance: int | None = None, seed: int = 0) -> str:
    """One row per result.

    Columns: pairs, the mean of each backbone, the overall score with its 95% interval, the mean of the backbones other
    than CLIP (CLIP is what UAE trains on), and words per caption. An incomplete result has no overall score; what its
    backbones give is marked with ``*`` where pairs are missing, and a note below says what failed.

    With a tolerance there are two more: how far the row lies above the first one on captions of equal length
    (:func:`~verl_uae.bench.length.compare_lengths`), overall and without CLIP, with 95% interval and number of matches.

    Args:
        results: by the name of the row, in order.
        tolerance: largest difference of matched captions, words; None: no matching.
        seed: of the bootstrap over matched pictures.
    """
    titles = [backbone.title for backbone in PROTOCOL.values()]
    head = ["result", "pairs", *titles, "overall", "95% interval", "held out (without CLIP)", "words"]
    rows = [_cells(name, content) for name, content in results.items()]
    if tolerance is not None:
        first = next(iter(results))
        above = f"minus {_escaped(first)}, lengths matched"
        head += [above, f"{above}, held out"]
        for row, (name, content) in zip(rows, results.items(), strict=True):
            row += [NOTHING] * 2 if name == first else _matched(content, results[first], tolerance, seed)
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *map(_line, rows)]
    notes = _notes(results)
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(name: str, content: Mapping[str, Any]) -> list[str]:
    section = content[SECTION]
    means = [_mean(content, backbone) for backbone in PROTOCOL]
    overall = _number(section["overall"])
    if not section["complete"] and section["partial_overall"] is not None:
        overall = f"{NOTHING} (partial: {section['partial_overall']:.2f})"
    bounds = section["confidence_intervals"]["overall"]
    interval = NOTHING if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
    words = NOTHING if section["mean_words"] is None else f"{section['mean_words']:.1f}"
    count = str(len(section["pairs"]))
    return [_escaped(name), count, *means, overall, interval, _number(section["held_out"]), words]


def _matched(content: Mapping[str, Any], first: Mapping[str, Any], tolerance: int, seed: int) -> list[str]:
    try:
        found = compare_lengths(content, first, tolerance=tolerance, seed=seed)
    except ConfigError:
        # No captions, or none of equal length: nothing to say in this row, where the others have something.
        return [NOTHING] * 2
    cells = []
    for name in ("overall", "held_out"):
        entry = found["difference"].get(name)
        low, high = (0.0, 0.0) if entry is None else entry["interval"]
        text = NOTHING if entry is None else f"{entry['mean']:+.2f} ({low:+.2f} to {high:+.2f}; {found['matched']})"
        cells.append(text)
    return cells


def _mean(content: Mapping[str, Any], backbone: str) -> str:
    statistics = content["statistics_by_model"].get(backbone)
    if statistics is None:
        return NOTHING
    mark = "*" if statistics["valid_pairs"] < statistics["total_images"] else ""
    return f"{content[SECTION]['means'][backbone]:.2f}{mark}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _notes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    for name, content in results.items():
        failures = content[SECTION]["failures"]
        if failures:
            first = failures[0]
            more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
            notes.append(f"* {_escaped(name)} is incomplete: {first['what']}: {first['reason']}{more}.")
    return notes + [f"* The rows are not {what}." for what in differences(list(results.values()))]
