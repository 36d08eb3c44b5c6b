# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A result of protocol 2 as one HTML file: rates, agreement, and pictures of each kind with the verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from verl_uae.bench.judge.contest import Item
from verl_uae.bench.judge.protocol import FAILED, INCONSISTENT, LOSS, TIE, WIN, Judged, Outcome
from verl_uae.bench.judge.result import mean_words
from verl_uae.bench.judge.statistics import majority
from verl_uae.bench.report import data_uri, page
from verl_uae.errors import DecodeError
from verl_uae.files import write_text

TEXT = 4000
"""Characters shown of an answer."""

_RATES = (
    ("win_rate", "win rate, ties as half"),
    ("win_rate_without_ties", "without ties"),
    ("first_position", "A chosen"),
    ("win_rate_shown_first", "shown first"),
    ("win_rate_shown_second", "shown second"),
)
_COUNTS = ("judged", "wins", "losses", "ties", "inconsistent", "failed")


def write_report(path: Path, content: Mapping[str, Any], judged: Judged, count: int = 6) -> None:
    """Write the report of a result.

    Args:
        path: HTML file to write.
        content: the result.
        judged: what it was made of; has the answers.
        count: how many pictures to show of each kind.
    """
    first, second = (escape(name) for name in judged.contest.names)
    body = [
        f"<h1>{escape(content['benchmark'])}: {escape(content['mode'])}</h1>",
        f"<p>First candidate: <b>{first}</b>. Second candidate: <b>{second}</b>. Rates are those of {first}.</p>",
        _failures(content["failures"]),
        _rates(content),
        _agreement(content["agreement"]),
    ]
    words = mean_words(content)
    if words is not None:
        body.append(f"<p>Words per caption: {first} {words[0]:.1f}, {second} {words[1]:.1f}</p>")
    kinds = {item.key: _kind([found[item.key] for found in judged.outcomes.values()]) for item in judged.contest.items}
    titles = ((WIN, f"Most judges prefer {first}"), (LOSS, f"Most judges prefer {second}"),
              (TIE, "No majority, or a tie"), (INCONSISTENT, "Every judge follows the position"),
              (FAILED, "Not judged by all"))  # fmt: skip
    for kind, title in titles:
        shown = [item for item in judged.contest.items if kinds[item.key] == kind]
        if shown:
            body.append(f"<h2>{title}: {len(shown)}</h2>")
            body += [_item(item, judged) for item in shown[:count]]
    prompt = content["prompt"]
    body.append(f"<details><summary>Prompt {escape(prompt['name'])}</summary>{_pre(prompt['text'])}</details>")
    write_text(path, page(content["benchmark"], "\n".join(body)))


def _kind(outcomes: Sequence[Outcome]) -> str:
    kinds = [outcome.kind for outcome in outcomes]
    return INCONSISTENT if set(kinds) == {INCONSISTENT} else majority(kinds)


def _rates(content: Mapping[str, Any]) -> str:
    heads = "".join(f"<th>{escape(title)}</th>" for title in (*_COUNTS, *(title for _, title in _RATES)))
    rows = [f"<table><tr><th>judge</th>{heads}</tr>"]
    for name, entry in [*content["judges"].items(), ("majority", content["majority"])]:
        counts = "".join(f"<td>{entry.get(key, '')}</td>" for key in _COUNTS)
        rates = "".join(f"<td>{rate_text(entry.get(key))}</td>" for key, _ in _RATES)
        rows.append(f"<tr><td>{escape(name)}</td>{counts}{rates}</tr>")
    rows.append("</table>")
    if content["overall"] is not None:
        low, high = content["overall_interval"]
        rows.append(f"<p>Mean over judges: {content['overall']:.2f}, 95% interval {low:.2f} to {high:.2f}</p>")
    return "\n".join(rows)


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """A rate with its fraction and interval; nothing where it is not defined."""
    if rate is None or rate["value"] is None:
        return ""
    low, high = rate["interval"]
    return f"{rate['value']:.1f}% = {rate['numerator']:g}/{rate['denominator']:g} ({low:.1f} to {high:.1f})"


def _agreement(agreement: Mapping[str, Any]) -> str:
    entries = dict(agreement["cohen"])
    if len(entries) > 1:
        entries["all judges (Fleiss)"] = agreement["fleiss"]
    items = [
        f"<li>{escape(name)}: kappa {'not defined' if entry['kappa'] is None else format(entry['kappa'], '.3f')}, "
        f"{entry['pictures']} pictures</li>"
        for name, entry in entries.items()
    ]
    return f"<p>Agreement between judges</p><ul>{''.join(items)}</ul>" if items else ""


def _failures(failures: Sequence[Mapping[str, str]], count: int = 50) -> str:
    if not failures:
        return ""
    items = "".join(f"<li>{escape(entry['what'])}: {escape(entry['reason'])}</li>" for entry in failures[:count])
    more = f"<p>and {len(failures) - count} more</p>" if len(failures) > count else ""
    return f'<div class="incomplete"><p>Incomplete: there is no overall rate.</p><ul>{items}</ul>{more}</div>'


def _item(item: Item, judged: Judged) -> str:
    pictures = [("original", item.source.path)]
    texts = []
    for name, content in zip(judged.contest.names, (item.first, item.second), strict=True):
        if isinstance(content, str):
            texts.append(f"<p><b>{escape(name)}</b>: {escape(content)}</p>")
        else:
            pictures.append((name, content.path))
    shown = "".join(_figure(name, path) for name, path in pictures)
    verdicts = "".join(_verdicts(name, found[item.key]) for name, found in judged.outcomes.items())
    # Three pictures fill the three columns of the page, and the text goes below.
    place = f"grid-column: {2 if texts else 1} / -1"
    text = f"<p>{escape(item.key)}</p>{''.join(texts)}{verdicts}"
    return f'<div class="pair">{shown}<div style="{place}">{text}</div></div>'


def _figure(name: str, path: Path) -> str:
    try:
        uri = data_uri(path)
    except DecodeError as error:
        return f"<p>{escape(str(error))}</p>"
    return f'<p>{escape(name)}<br><img alt="{escape(name)}" src="{uri}"></p>'


def _verdicts(judge: str, outcome: Outcome) -> str:
    choices = ", ".join(choice or "none" for choice in outcome.choices) or "not asked, the candidates are the same"
    answers = "".join(f"<p>{escape(answer.reason)}</p>{_pre(answer.text)}" for answer in outcome.answers)
    summary = f"<summary>{escape(judge)}: {outcome.kind} (in order, swapped: {choices})</summary>"
    return f"<details>{summary}{answers}</details>"


def _pre(text: str) -> str:
    return f"<p>{escape(text[:TEXT])}</p>" if text else ""
