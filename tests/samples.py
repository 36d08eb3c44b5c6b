# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures, samples and outcomes that several tests begin with."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from verl_uae.chain.records import Caption, Outcome, Sample
from verl_uae.reward.record import RewardRecord, Status
from verl_uae.scenes.render import render_float, sample_scene

UNREADABLE = "a \ud800 circle"
"""A lone surrogate has no UTF-8: the tokenizer raises."""


def picture(seed: int) -> Image.Image:
    """A scene of 32 x 32 pixels."""
    pixels = render_float([sample_scene(random.Random(seed))])[0].permute(1, 2, 0)
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def damaged_picture(seed: int) -> Image.Image:
    """A picture whose file ends early: Pillow raises when its pixels are read."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()[:-60]))


def caption(text: str = "a red circle", **changes: Any) -> Caption:
    """A caption of four tokens."""
    return Caption(**{"text": text, "digest": "d", "tokens": 4, **changes})


def sample(text: str = "a red circle", seed: int = 0, row: Mapping[str, Any] | None = None, **changes: Any) -> Sample:
    """A scene with a caption; ``changes`` are fields of the caption."""
    return Sample(picture(seed), caption(text, **{"digest": f"d{seed}", **changes}), row or {})


def scored(value: float, picture: bytes | None = None, reconstruction: bytes | None = None, **terms: float) -> Outcome:
    """What became of a sample that has a reward."""
    return Outcome(RewardRecord(value, Status.OK, terms or {"pixel": value}), False, picture, reconstruction)


def lost(reason: str = "decoder: OSError: gone", status: Status = Status.ERROR) -> Outcome:
    """What became of one that has none."""
    return Outcome.failed(status, reason)
