# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every family of decoders at its published width: pictures drawn with guidance from captions of unequal lengths, and
an update."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from tests.real_size.accelerator import Accelerator, Devices
from tests.real_size.models import BLOCKS
from verl_uae.families.family import Condition
from verl_uae.families.published import DECODERS, build, published
from verl_uae.flow.ode import euler

SIDE = 512
LENGTHS = (160, 80)

#: What the host waits for, in two steps and an update.
WAITS = {
    # Its transformer looks for pads, once a call.
    "z_image": {"families/z_image.py:forward": 3},
}

#: Its transformer reads a mask on the host in every call, so that what it makes depends on values.
ASKS = {"qwen_image21"}


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_pictures_are_drawn_and_weights_updated_on_the_device(name: str) -> None:
    accelerator = Devices() if name in ASKS else Accelerator()
    family, arguments = published(name, BLOCKS)
    modules = build(family, arguments)
    parts = SimpleNamespace(**{part: modules[folder] for part, folder in family.trained.items()}, vae=modules["vae"])
    taps = len(family.taps(36))
    width = (taps, family.state_width) if name == "krea2_raw" else (taps * (family.state_width or 0),)
    with accelerator:
        states = torch.zeros(len(LENGTHS), max(LENGTHS), *width, dtype=torch.bfloat16, device="meta")
        condition = Condition(states, LENGTHS)
        field = family.field(parts, condition, condition[[1]], 3.0)
        x = torch.zeros(len(LENGTHS), *family.latent_shape(SIDE, SIDE), device="meta")
        with torch.no_grad():
            picture = family.decode_latent(parts.vae, euler(field, x, family.sigmas(2, SIDE, SIDE)))
        field(x, torch.full((len(LENGTHS),), 0.5, device="meta")).square().mean().backward()
    assert picture.shape == (len(LENGTHS), 3, SIDE, SIDE) and picture.dtype == torch.float32
    if isinstance(accelerator, Accelerator):
        assert accelerator.syncs == Counter(WAITS.get(name, {}))
    assert family.encode_image(parts.vae, picture).shape == x.shape
    blocks = [
        each for each in parts.transformer.modules() if type(each).__name__ in family.wrap_blocks(parts.transformer)
    ]
    within = {id(weight) for block in blocks for weight in block.parameters()}
    # What lies outside of blocks is held whole by every rank while it computes.
    outside = sum(weight.numel() for weight in parts.transformer.parameters() if id(weight) not in within)
    assert outside < 0.35e9
