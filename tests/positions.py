# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A decoder of another kind: without a table of positions, which diffusers computes for each size then."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import SD3Transformer2DModel


def computed_positions(decoder: Path, folder: Path) -> Path:
    """A copy of a decoder folder, with the same weights otherwise."""
    shutil.copytree(decoder, folder)
    stock = SD3Transformer2DModel.from_pretrained(decoder, subfolder="transformer")
    other = SD3Transformer2DModel.from_config({**stock.config, "pos_embed_max_size": None})
    weights = {name: value for name, value in stock.state_dict().items() if name != "pos_embed.pos_embed"}
    other.load_state_dict(weights)
    shutil.rmtree(folder / "transformer")
    other.save_pretrained(folder / "transformer")
    return folder
