# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A result as one HTML file: scores, failures, worst and best pairs. Pictures are inside; nothing is loaded."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from verl_uae.bench.backbones import PROTOCOL
from verl_uae.bench.pairs import Pair
from verl_uae.bench.unified import SECTION
from verl_uae.data.images import decode_image
from verl_uae.files import write_text

SIDE = 320
"""Longest side of a picture in the report, pixels."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #1d1d1f }}
table {{ border-collapse: collapse }} th, td {{ padding: .25rem .8rem; text-align: right }}
th, td {{ border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}
.pair {{ display: grid; grid-template-columns: {side}px {side}px 1fr; gap: 1rem; margin: 1.2rem 0 }}
.pair img {{ max-width: 100% }} .pair p {{ margin: .3rem 0; white-space: pre-wrap; overflow-wrap: anywhere }}
.incomplete {{ background: #fff3cd; padding: .6rem 1rem }}
@media (max-width: 900px) {{ .pair {{ grid-template-columns: 1fr 1fr }} .pair div {{ grid-column: 1 / 3 }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(path: Path, content: Mapping[str, Any], pairs: Sequence[Pair], count: int = 8) -> None:
    """Write the report of a result.

    Args:
        path: HTML file to write.
        content: the result.
        pairs: its pairs.
        count: how many of the worst and of the best pairs to show; fewer if they would meet.
    """
    section = content[SECTION]
    ranked = rank(content)
    shown = min(count, (len(ranked) + 1) // 2)
    by_name = {pair.name: pair for pair in pairs}
    captions = {pair["name"]: pair["caption"] for pair in section["pairs"]}
    body = [f"<h1>{escape(section['benchmark'])}</h1>", _summary(content), _failures(section["failures"])]
    for title, names in (("Worst pairs", ranked[:shown]), ("Best pairs", ranked[shown:][::-1][:shown])):
        body.append(f"<h2>{title}</h2>")
        body += [_pair(content, by_name[name], captions[name], mean) for name, mean in names]
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in section["versions"].items())
    body.append(f"<p><small>{versions}</small></p>")
    write_text(path, page(section["benchmark"], "\n".join(body)))


def page(title: str, body: str) -> str:
    """A whole page that loads nothing and runs nothing; the title is escaped, the body is HTML."""
    return _PAGE.format(title=escape(title), side=SIDE, body=body)


def rank(content: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names of pairs and the mean of their similarities, worst first; pairs that lack a value are left out."""
    tables = list(content["similarities_by_model"].values())
    found = []
    for pair in content[SECTION]["pairs"]:
        values = [table.get(pair["name"]) for table in tables]
        if values and None not in values:
            found.append((pair["name"], sum(values) / len(values)))
    return sorted(found, key=lambda item: (item[1], item[0]))


def _summary(content: Mapping[str, Any]) -> str:
    section = content[SECTION]
    bounds = section["confidence_intervals"]
    rows = []
    for name, mean in section["means"].items():
        statistics = content["statistics_by_model"][name]
        pairs = f"{statistics['valid_pairs']} of {statistics['total_images']}"
        rows.append((PROTOCOL[name].title, mean, bounds["by_model"].get(name), pairs))
    if section["complete"]:
        rows.append(("Overall", section["overall"], bounds["overall"], ""))
        rows.append(("Held out (without CLIP)", section["held_out"], bounds["held_out"], ""))
    lines = ["<table><tr><th></th><th>mean &times; 100</th><th>95% interval</th><th>pairs</th></tr>"]
    for title, mean, limits, pairs in rows:
        text = "" if limits is None else f"{limits[0]:.2f} to {limits[1]:.2f}"
        lines.append(f"<tr><td>{escape(title)}</td><td>{mean:.2f}</td><td>{text}</td><td>{pairs}</td></tr>")
    lines.append("</table>")
    if section["mean_words"] is not None:
        lines.append(f"<p>{section['mean_words']:.1f} words per caption</p>")
    return "\n".join(lines)


def _failures(failures: Sequence[Mapping[str, str]]) -> str:
    if not failures:
        return ""
    items = "".join(f"<li>{escape(entry['what'])}: {escape(entry['reason'])}</li>" for entry in failures)
    return f'<div class="incomplete"><p>Incomplete: there is no overall score.</p><ul>{items}</ul></div>'


def _pair(content: Mapping[str, Any], pair: Pair, caption: str | None, mean: float) -> str:
    values = ", ".join(
        f"{PROTOCOL[name].title} {100.0 * table[pair.name]:.2f}"
        for name, table in content["similarities_by_model"].items()
    )
    text = "" if caption is None else f"<p>{escape(caption)}</p>"
    pictures = "".join(
        f'<img alt="{alt}" src="{data_uri(path)}">'
        for alt, path in (("original", pair.reference), ("drawn", pair.generated))
    )
    name = f"<p><b>{100.0 * mean:.2f}</b> {escape(pair.key)}</p>"
    return f'<div class="pair">{pictures}<div>{name}<p>{values}</p>{text}</div></div>'


def data_uri(path: Path) -> str:
    """A picture, made smaller if it is larger than `SIDE`, as a URI that holds it."""
    image = decode_image(path)
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"
