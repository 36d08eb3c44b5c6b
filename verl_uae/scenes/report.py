# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Before and after: a table of text, and a report with pictures as one HTML file and as one PNG."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from verl_uae.scenes.evaluate import Evaluation

#: Metric -> what it is called.
COLUMNS = {
    "reward": "reconstruction reward",
    "drawn": "exact attribute accuracy of the reconstructions",
    "words": "words per caption",
    "full_detail": "captions with full detail",
    "true": "captions in which every stated fact is true",
    "scene_eval/loop": "SceneEval of caption and drawing",
    "scene_eval/draw": "SceneEval of drawing its prompts",
}

_SHOWN = 10
_SCALE = 4


def comparison(before: Evaluation, after: Evaluation) -> str:
    """Before and after as a table of text."""
    lines = [f"{'held-out scenes (128)':<46} {'before':>8} {'after':>8}"]
    for key, label in COLUMNS.items():
        lines.append(f"{label:<46} {before.metrics[key]:>8.3f} {after.metrics[key]:>8.3f}")
    return "\n".join(lines)


def write_report(path: Path, before: Evaluation, after: Evaluation) -> Path:
    """Write the report; returns its path."""
    rows = "".join(
        f"<tr><td>{label}</td><td>{before.metrics[key]:.3f}</td><td>{after.metrics[key]:.3f}</td></tr>"
        for key, label in COLUMNS.items()
    )
    samples = "".join(_sample_row(before, after, index) for index in range(min(_SHOWN, len(before.captions))))
    path.write_text(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Generation for Understanding</title>"
        "<style>body{font:14px/1.4 system-ui,sans-serif;margin:2rem}td,th{padding:.4rem .8rem;text-align:left;"
        "border-bottom:1px solid #ddd}img{image-rendering:pixelated}</style></head><body>"
        "<h1>Before and after Generation for Understanding</h1>"
        f"<table><tr><th>128 held-out scenes</th><th>before</th><th>after</th></tr>{rows}</table>"
        "<h2>Held-out scenes</h2><table><tr><th>original</th><th>before</th><th></th><th>after</th><th></th></tr>"
        f"{samples}</table></body></html>\n",
        encoding="utf-8",
    )
    return path


def comparison_picture(before: Evaluation, after: Evaluation, count: int = 8) -> Image.Image:
    """Rows: originals, reconstructions before, reconstructions after; one column per scene."""
    rows = [strip(images[:count]) for images in (before.images, before.drawings, after.drawings)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def strip(images_B3HW: torch.Tensor) -> np.ndarray:
    """Pictures side by side, enlarged, as uint8 (H, B W, 3)."""
    tiles = [np.asarray(_picture(image)) for image in images_B3HW]
    return np.concatenate(tiles, axis=1)


def _sample_row(before: Evaluation, after: Evaluation, index: int) -> str:
    cells = [_tag(before.images[index])]
    for result in (before, after):
        cells += [_tag(result.drawings[index]), html.escape(result.captions[index])]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _picture(image_3HW: torch.Tensor) -> Image.Image:
    pixels = (image_3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    return image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)


def _tag(image_3HW: torch.Tensor) -> str:
    buffer = io.BytesIO()
    _picture(image_3HW).save(buffer, "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
