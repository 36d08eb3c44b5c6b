# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.families.contract import CAPTIONS, Contract, change, states
from tests.families.tiny import Tiny
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import NORMED


class TestZImage(Contract):
    name = "z_image"

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        return pipe.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)[0][0].detach()

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        negative = {"negative_prompt": self.negative} if scale > 1.0 else {}
        # v_c + scale (v_c - v_u) there.
        arguments = {"guidance_scale": scale - 1.0, "latents": noise_BCHW, "output_type": "pt"}
        return pipe(prompt=caption, **negative, **arguments, **options).images

    def test_the_state_is_the_last_but_one(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        assert family.taps(36) == (35,)
        for wrong in (4, NORMED):
            assert change(family, tiny, tokens, states(family, tiny, tokens, (wrong,))) > 1e-2

    def test_time_and_velocity_are_the_other_way_round(self, family: DecoderFamily) -> None:
        """A transformer that says what it is given: velocity 0.25 at the time 0.25, which is sigma 0.75."""

        def transformer(x: list[Tensor], time_B: Tensor, texts: list[Tensor], **_: Any) -> tuple[list[Tensor]]:
            assert [len(text) for text in texts] == [3, 1] and x[0].shape == (16, 1, 2, 2)
            return ([torch.full_like(each, float(time)) for each, time in zip(x, time_B, strict=True)],)

        condition = Condition(torch.zeros(2, 3, 4), (3, 1))
        parts = SimpleNamespace(transformer=transformer)
        found = family.forward(parts, torch.zeros(2, 16, 2, 2), torch.tensor([0.75, 1.0]), condition)
        assert found[:, 0, 0, 0].tolist() == [-0.25, 0.0]
