# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Before and after: a table of text, and a report with pictures as one HTML file and as one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from verl_uae.pages import data_uri, render_page
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
    figures = [(label, before.metrics[key], after.metrics[key]) for key, label in COLUMNS.items()]
    scenes = [
        (_uri(before.images[index]), [(_uri(each.drawings[index]), each.captions[index]) for each in (before, after)])
        for index in range(min(_SHOWN, len(before.captions)))
    ]
    title = "Before and after Generation for Understanding"
    path.write_text(render_page("scenes.html", title=title, figures=figures, scenes=scenes), encoding="utf-8")
    return path


def comparison_picture(before: Evaluation, after: Evaluation, count: int = 8) -> Image.Image:
    """Rows: originals, reconstructions before, reconstructions after; one column per scene."""
    rows = [strip(images[:count]) for images in (before.images, before.drawings, after.drawings)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def strip(images_B3HW: torch.Tensor) -> np.ndarray:
    """Pictures side by side, enlarged, as uint8 (H, B W, 3)."""
    tiles = [np.asarray(_picture(image)) for image in images_B3HW]
    return np.concatenate(tiles, axis=1)


def _picture(image_3HW: torch.Tensor) -> Image.Image:
    pixels = (image_3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    return image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)


def _uri(image_3HW: torch.Tensor) -> str:
    return data_uri(_picture(image_3HW), form="PNG")
