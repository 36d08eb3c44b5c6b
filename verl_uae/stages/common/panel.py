# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Panels: original | caption | reconstruction | terms, for a fixed probe set, as local HTML and to the loggers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from verl_uae.chain.records import Outcome, Sample
from verl_uae.data.images import encode_shown, rgb, to_tensor
from verl_uae.files import write_bytes, write_text
from verl_uae.pages import SHARP_SIDE, encoded_uri, link, render_page
from verl_uae.stages.common.trackers import Shown, send
from verl_uae.text import encodable

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Least and most that a picture is wide on the screen, pixels.
_SHOWN_SIDES = (192, 384)

#: Most pictures in a strip, and the side of each, pixels.
_STRIP_LENGTH, _STRIP_SIDE = 8, 128

_NAME = "step_{step:06d}.html"


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One probe picture."""

    source: bytes
    """Of the source picture, encoded like the others."""
    caption: str
    reconstruction: bytes
    """Drawn with the sampler of the reward."""
    reward: float | None
    terms: Mapping[str, float]
    explored: bytes | None = None
    """Drawn with the training sampler of the decoder policy, where there is one."""

    @classmethod
    def of_sample(cls, sample: Sample, outcome: Outcome, explored: bytes | None = None) -> PanelRow:
        """From a sample, its outcome, which has a picture, and perhaps a picture of the training sampler."""
        assert outcome.picture is not None
        with Image.open(io.BytesIO(outcome.picture)) as drawn:
            size = (drawn.height, drawn.width)
        source = encode_shown(to_tensor([rgb(sample.image)], size)[0])
        record = outcome.record
        return cls(source, sample.caption.text, outcome.picture, record.value, dict(record.terms), explored)


class PanelWriter:
    """Writes ``step_<N>.html`` and a strip of its pictures, ``step_<N>.png``, into a folder, and sends the pictures to
    the trackers that take some.

    Args:
        folder: made on first use.
        run_page: that panels lead back to.
    """

    def __init__(self, folder: str, run_page: str) -> None:
        self.folder = Path(folder)
        self.newest: Path | None = None
        """The panel that was written last."""
        self._run_page = run_page

    def write(self, step: int, rows: Sequence[PanelRow], tracking: Any = None) -> Path:
        """Write the panel of a step, which appears whole; the one before gets a link to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _NAME.format(step=step)
        links = {"the run": link(self._run_page, path)}
        panels = written(self.folder)
        before = max((number for number in panels if number < step), default=None)
        if before is not None:
            links[f"step {before}"] = panels[before].name
        write_bytes(path.with_suffix(".png"), strip(rows))
        write_text(path, render(step, rows, links))
        if before is not None:
            _lead_on(panels[before], step, path.name)
        self.newest = path
        logger.info("panel of step %d: %s", step, path)
        send(tracking, [Shown(_grid(row), f"{row.reward}: {row.caption}") for row in rows], step)
        return path


def written(folder: Path) -> dict[int, Path]:
    """Panels of a folder by step, in ascending order."""
    found = {}
    for path in folder.glob("step_*.html"):
        step = path.stem.partition("_")[2]
        if step.isascii() and step.isdecimal() and path.name == _NAME.format(step=int(step)) and path.is_file():
            found[int(step)] = path
    return dict(sorted(found.items()))


def _lead_on(panel: Path, step: int, name: str) -> None:
    """Add the link to a later panel; a file of somebody else stays as it is."""
    with contextlib.suppress(OSError, ValueError):
        text = panel.read_text(encoding="utf-8")
        later = f'<a href="{name}">step {step}</a>'
        if later not in text:
            write_text(panel, text.replace("</nav>", f"{later}</nav>", 1))


def render(step: int, rows: Sequence[PanelRow], links: Mapping[str, str]) -> str:
    """The panel as one HTML page that loads nothing; captions are escaped.

    Args:
        step: of the run.
        rows: one per probe picture.
        links: what they are called -> address.
    """
    explored = any(row.explored for row in rows)
    labels = ("original", "eval sampler", "train sampler") if explored else ("original", "reconstruction")
    shown = [
        {
            "pictures": [
                (label, encoded_uri(picture))
                for label, picture in zip(labels, (row.source, row.reconstruction, row.explored), strict=False)
                if picture is not None
            ],
            "caption": encodable(row.caption),
            "reward": row.reward,
            "terms": sorted(row.terms.items()),
        }
        for row in rows
    ]
    return render_page("panel.html", title=f"Step {step}", rows=shown, explored=explored, links=links, side=_side(rows))


def _side(rows: Sequence[PanelRow]) -> int:
    """Width at which pictures are shown, pixels."""
    widths = []
    for row in rows:
        with Image.open(io.BytesIO(row.source)) as image:
            widths.append(image.width)
    return min(max(_SHOWN_SIDES[0], *widths), _SHOWN_SIDES[1]) if widths else _SHOWN_SIDES[0]


def strip(rows: Sequence[PanelRow]) -> bytes:
    """Originals side by side, and below each its reconstruction, as PNG."""
    shown = []
    for row in rows[:_STRIP_LENGTH]:
        for data in (row.source, row.reconstruction):
            with Image.open(io.BytesIO(data)) as picture:
                shown.append(ImageOps.pad(picture.convert("RGB"), (_STRIP_SIDE, _STRIP_SIDE), _scaling(picture)))
    whole = Image.new("RGB", (max(1, len(shown) // 2) * _STRIP_SIDE, 2 * _STRIP_SIDE))
    for place, tile in enumerate(shown):
        whole.paste(tile, (place // 2 * _STRIP_SIDE, place % 2 * _STRIP_SIDE))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def _scaling(picture: Image.Image) -> Image.Resampling:
    """Small pictures keep their pixels."""
    small = max(picture.size) <= SHARP_SIDE
    return Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC


def _grid(row: PanelRow) -> Image.Image:
    source, drawn = (Image.open(io.BytesIO(data)).convert("RGB") for data in (row.source, row.reconstruction))
    grid = Image.new("RGB", (source.width + drawn.width, max(source.height, drawn.height)))
    grid.paste(source, (0, 0))
    grid.paste(drawn, (source.width, 0))
    return grid
