# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from tests.real_size import models
from tests.real_size.accelerator import Accelerator


@pytest.mark.parametrize("hidden", sorted(models.LANGUAGES))
@pytest.mark.parametrize("decoder", models.DECODERS)
def test_a_caption_reaches_the_decoder_from_captioners_of_both_widths(
    decoder: str, hidden: int, accelerator: Accelerator
) -> None:
    size = models.size_of(decoder, hidden)
    conditioner, module = models.conditioner(size), models.policy_module(size)
    with accelerator, torch.no_grad():
        condition = conditioner.encode(["a red circle"] * 8)
        projected_BLF = module.projector(condition.states)
    assert condition.states.shape == (8, models.TEXT_TOKENS, hidden)
    assert projected_BLF.shape == (8, models.TEXT_TOKENS, 4096) and projected_BLF.device.type == "meta"
    # transformers asks whether the mask masks anything.
    assert accelerator.syncs == {"families/text.py:tap_states": 1}
