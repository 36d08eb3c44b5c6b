# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Results of one benchmark side by side, as Markdown; raw and rewritten prompts never in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_uae.bench.compare import NOTHING

TITLES = {"geneval": "GenEval", "genevalpp": "GenEval++", "dpg": "DPG-Bench"}


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One table for each benchmark and set of prompts, scores times 100.

    Args:
        results: by the name of the row, in order.
    """
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, content in results.items():
        groups.setdefault((content["bench"], content["prompt_set"]), {})[name] = content
    return "\n".join(_table(bench, prompt_set, rows) for (bench, prompt_set), rows in groups.items())


def _table(bench: str, prompt_set: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for content in rows.values() for name in _categories(content)))
    head = ["result", "scores", *names, "overall", "95% interval"]
    lines = [f"**{TITLES[bench]}, {prompt_set} prompts**", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    lines += [_line(_cells(row, content, names)) for row, content in rows.items()]
    notes = _notes(rows)
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _categories(content: Mapping[str, Any]) -> dict[str, float | None]:
    """Scores by category: ours, or the scorer's own where the answers are not at hand."""
    if content["categories"]:
        return {name: category["score"] for name, category in content["categories"].items()}
    return dict(content["official"].get("l1", {}))


def _cells(row: str, content: Mapping[str, Any], names: list[str]) -> list[str]:
    scores = _categories(content)
    overall = _number(content["overall"])
    if content["overall"] is None:
        overall = f"{NOTHING} (partial: {_number(content['partial_overall'])})"
    bounds = content["overall_interval"]
    between = NOTHING if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"
    count = f"{content['scored']} of {content['prompts'] * content['samples_per_prompt']}"
    return [_escaped(row), count, *(_number(scores.get(name)) for name in names), overall, between]


def _notes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    for row, content in rows.items():
        if content["missing"]:
            first = content["missing"][0]
            more = f", and {len(content['missing']) - 1} more" if len(content["missing"]) > 1 else ""
            notes.append(f"* {_escaped(row)} is incomplete: {first['what']}: {_escaped(first['reason'])}{more}.")
        notes += [f"* {_escaped(row)}: {note}." for note in content["notes"]]
    if len({content["source"]["sha256"] for content in rows.values()}) > 1:
        notes.append("* The rows are not over the same prompts and do not compare.")
    if len({repr(content["rewritten"] and content["rewritten"]["sha256"]) for content in rows.values()}) > 1:
        notes.append("* The rows are not of the same rewritten prompts.")
    return notes


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2f}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
