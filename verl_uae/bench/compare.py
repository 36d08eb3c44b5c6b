# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results side by side as a Markdown table: captioners with one decoder, decoders with one captioner, models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_uae.bench.backbones import PROTOCOL
from verl_uae.bench.unified import SECTION

NOTHING = "–"


def compare(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per result.

    Columns: pairs, the mean of each backbone, the overall score with its 95% interval, the mean of the backbones other
    than CLIP (CLIP is what UAE trains on), and words per caption. An incomplete result has no overall score; what its
    backbones give is marked with ``*`` where pairs are missing, and a note below says what failed.

    Args:
        results: by the name of the row, in order.
    """
    titles = [backbone.title for backbone in PROTOCOL.values()]
    head = ["result", "pairs", *titles, "overall", "95% interval", "held out (without CLIP)", "words"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    lines += [_line(_cells(name, content)) for name, content in results.items()]
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


def differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps results from being compared, as what they are not."""
    found = []
    if len({content[SECTION]["references"] for content in results}) > 1:
        found.append("over the same pictures and do not compare")
    if len({repr(sorted(content[SECTION]["models"].items())) for content in results}) > 1:
        found.append("from the same backbones")
    return found
