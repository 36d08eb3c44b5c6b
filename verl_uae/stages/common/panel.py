# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Panels: original | caption | reconstruction | terms, for a fixed probe set, as local HTML and to the loggers."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from verl_uae.chain.records import Outcome, Sample
from verl_uae.data.images import encode_jpeg, rgb, to_tensor
from verl_uae.files import write_text
from verl_uae.pages import encoded_uri, render_page
from verl_uae.stages.common.trackers import Shown, send
from verl_uae.text import encodable

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Small pictures are shown at least this large, pixels.
_SHOWN_SIDE = 192


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One probe picture."""

    source: bytes
    """JPEG of the source picture."""
    caption: str
    reconstruction: bytes
    """JPEG drawn with the sampler of the reward."""
    reward: float | None
    terms: Mapping[str, float]
    explored: bytes | None = None
    """JPEG drawn with the training sampler of the decoder policy, where there is one."""

    @classmethod
    def of_sample(cls, sample: Sample, outcome: Outcome, explored: bytes | None = None) -> PanelRow:
        """From a sample, its outcome, which has a picture, and perhaps a picture of the training sampler."""
        assert outcome.picture is not None
        with Image.open(io.BytesIO(outcome.picture)) as drawn:
            size = (drawn.height, drawn.width)
        source = encode_jpeg(to_tensor([rgb(sample.image)], size)[0])
        record = outcome.record
        return cls(source, sample.caption.text, outcome.picture, record.value, dict(record.terms), explored)


class PanelWriter:
    """Writes ``step_<N>.html`` into a folder, and sends the pictures to the trackers that take some.

    Args:
        folder: made on first use.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.newest: Path | None = None
        """The panel that was written last."""

    def write(self, step: int, rows: Sequence[PanelRow], tracking: Any = None) -> Path:
        """Write the panel of a step, which appears whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:06d}.html"
        write_text(path, render(step, rows))
        self.newest = path
        logger.info("panel of step %d: %s", step, path)
        send(tracking, [Shown(_grid(row), f"{row.reward}: {row.caption}") for row in rows], step)
        return path


def render(step: int, rows: Sequence[PanelRow]) -> str:
    """The panel as one self-contained HTML page; captions are escaped."""
    shown = [
        {
            "pictures": [_picture(jpeg) for jpeg in (row.source, row.reconstruction, row.explored) if jpeg is not None],
            "caption": encodable(row.caption),
            "reward": row.reward,
            "terms": sorted(row.terms.items()),
        }
        for row in rows
    ]
    return render_page("panel.html", title=f"Step {step}", rows=shown, explored=any(row.explored for row in rows))


def _picture(jpeg: bytes) -> tuple[str, int, int]:
    """URI, width and height."""
    with Image.open(io.BytesIO(jpeg)) as image:
        width, height = image.size
    scale = max(1, -(-_SHOWN_SIDE // max(width, height)))
    return encoded_uri(jpeg), width * scale, height * scale


def _grid(row: PanelRow) -> Image.Image:
    source, drawn = (Image.open(io.BytesIO(data)).convert("RGB") for data in (row.source, row.reconstruction))
    grid = Image.new("RGB", (source.width + drawn.width, max(source.height, drawn.height)))
    grid.paste(source, (0, 0))
    grid.paste(drawn, (source.width, 0))
    return grid
