# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Panels: original | caption | reconstruction | terms, for a fixed probe set, as local HTML and to the loggers."""

from __future__ import annotations

import base64
import html
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from verl_uae.chain.records import Outcome, Sample
from verl_uae.data.images import encode_jpeg, rgb, to_tensor
from verl_uae.files import write_text
from verl_uae.text import encodable

logger = logging.getLogger(__name__)

#: Small pictures are shown at least this large, pixels.
_SHOWN_SIDE = 192

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; }
table { border-collapse: collapse; }
td, th { border-bottom: 1px solid #ddd; padding: .5rem .8rem; text-align: left; vertical-align: top; }
img { image-rendering: pixelated; display: block; }
td.caption { max-width: 32rem; }
"""

#: Whether pictures of the training sampler are shown -> text and columns.
_LEGEND = {
    False: "reconstructions drawn with the reward's sampler",
    True: "drawn with the ODE sampler and averaged weights (eval sampler), and with the stochastic sampler and live "
    "weights (train sampler)",
}
_HEADS = {False: "<th>reconstruction</th>", True: "<th>eval sampler</th><th>train sampler</th>"}


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
    """Writes ``step_<N>.html`` into a folder, and sends the pictures to TensorBoard and W&B where those run.

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
        self._send(step, rows, tracking)
        return path

    def _send(self, step: int, rows: Sequence[PanelRow], tracking: Any) -> None:
        backends = getattr(tracking, "logger", {})
        if "tensorboard" in backends:
            writer = getattr(backends["tensorboard"], "writer", None)
            if writer is not None:
                writer.add_images("panel/source_and_reconstruction", _pairs(rows), step)
        if "wandb" in backends:
            import wandb

            images = [wandb.Image(_grid(row), caption=encodable(f"{row.reward}: {row.caption}")) for row in rows]
            backends["wandb"].log({"panel/source_and_reconstruction": images}, step=step)


def render(step: int, rows: Sequence[PanelRow]) -> str:
    """The panel as one self-contained HTML page; captions are escaped."""
    body = "\n".join(_row_html(row) for row in rows)
    explored = any(row.explored for row in rows)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>step {step}</title>"
        f"<style>{_STYLE}</style></head><body><h1>Step {step}</h1>"
        f"<p>Fixed probe pictures; {_LEGEND[explored]}.</p>"
        f"<table><thead><tr><th>original</th><th>caption</th>{_HEADS[explored]}<th>terms</th></tr></thead>"
        f"<tbody>{body}</tbody></table></body></html>\n"
    )


def _row_html(row: PanelRow) -> str:
    reward = "–" if row.reward is None else f"{row.reward:.4f}"
    explored = f"<td>{_img(row.explored)}</td>" if row.explored else ""
    terms = "".join(f"<br>{html.escape(name)} {value:.4f}" for name, value in sorted(row.terms.items()))
    return (
        f"<tr><td>{_img(row.source)}</td><td class='caption'>{html.escape(encodable(row.caption))}</td>"
        f"<td>{_img(row.reconstruction)}</td>{explored}<td><b>reward {reward}</b>{terms}</td></tr>"
    )


def _img(jpeg: bytes) -> str:
    with Image.open(io.BytesIO(jpeg)) as image:
        width, height = image.size
    scale = max(1, -(-_SHOWN_SIDE // max(width, height)))
    data = base64.b64encode(jpeg).decode()
    return f"<img width='{width * scale}' height='{height * scale}' src='data:image/jpeg;base64,{data}'>"


def _grid(row: PanelRow) -> Image.Image:
    source, drawn = (Image.open(io.BytesIO(data)).convert("RGB") for data in (row.source, row.reconstruction))
    grid = Image.new("RGB", (source.width + drawn.width, max(source.height, drawn.height)))
    grid.paste(source, (0, 0))
    grid.paste(drawn, (source.width, 0))
    return grid


def _pairs(rows: Sequence[PanelRow]) -> torch.Tensor:
    return torch.cat([to_tensor([grid], (grid.height, grid.width)) for grid in map(_grid, rows)])
