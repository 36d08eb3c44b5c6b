# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.contract import CAPTIONS, SIZE, Contract, change, gap, states
from tests.families.tiny import Tiny
from verl_uae.families.family import DecoderFamily
from verl_uae.families.text import NORMED
from verl_uae.seeding import normal


class TestQwenImage21(Contract):
    name = "qwen_image21"

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        states_BLE, mask_BL, _ = pipe.encode_prompt(caption, device="cpu")
        assert mask_BL is None
        return states_BLE[0].detach()

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        latents = pipe._pack_latents(noise_BCHW, *noise_BCHW.shape)
        negative = {"negative_prompt": self.negative} if scale > 1.0 else {}
        # With the cache of the text's keys, of the first step, there would be no gradient through them.
        arguments = {"true_cfg_scale": scale, "latents": latents, "output_type": "pt", "use_kv_cache": False}
        return over_white(pipe(prompt=caption, **negative, **arguments, **options).images)

    @torch.no_grad()
    def through_codec(self, vae: Any, picture_B3HW: Tensor) -> Tensor:
        opaque = torch.cat([picture_B3HW, torch.ones_like(picture_B3HW[:, :1])], 1)
        return over_white(super().through_codec(vae, opaque.unsqueeze(2)).squeeze(2))

    def test_the_last_state_is_not_normed(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        assert family.taps(36) == (36,)
        assert change(family, tiny, tokens, states(family, tiny, tokens, (NORMED,))) > 1e-3

    @torch.no_grad()
    def test_captions_of_unequal_lengths_run_apart(
        self, family: DecoderFamily, tiny: Tiny, encode: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one batch of the transformer pads move the positions of the picture, whatever the mask says."""
        both, parts = encode(*CAPTIONS), SimpleNamespace(transformer=tiny.transformer)
        x, sigma_B = normal((2, *family.latent_shape(**SIZE)), "x"), torch.tensor([0.9, 0.3])
        apart = family.field(parts, both)(x, sigma_B)
        alone = family.field(parts, both[1:])(x[1:], sigma_B[1:])
        monkeypatch.setattr(type(family), "mixes_lengths", True)
        together = family.field(parts, both)(x, sigma_B)
        assert gap(apart[1:], alone) < 1e-5 and gap(together[1:], alone) > 1e-3

    def test_pictures_are_laid_over_white(self, family: DecoderFamily) -> None:
        """Transparent black is white, opaque black is black, half of each is grey, whatever is beyond."""
        opacity = torch.tensor([-1.5, 1.5, 0.0]).view(3, 1, 1, 1)
        decoded = torch.cat([-1.5 * torch.ones(3, 3, 1, 1), opacity], 1).unsqueeze(2)
        config = SimpleNamespace(latents_mean=[0.0] * 64, latents_std=[1.0] * 64)
        vae = SimpleNamespace(config=config, dtype=torch.float32, decode=lambda *_, **__: (decoded,))
        found = family.decode_latent(vae, torch.zeros(3, 64, 1, 1))
        assert found.shape == (3, 3, 1, 1) and found[:, 0, 0, 0].tolist() == [1.0, 0.0, 0.5]

    def test_a_side_is_a_multiple_of_32_and_has_a_token_every_16(self, family: DecoderFamily) -> None:
        assert family.latent_shape(64, 96) == (64, 4, 6) and family.image_tokens(64, 96) == 24
        with pytest.raises(ValueError, match="multiples of 32, got 48x96"):
            family.latent_shape(48, 96)


def over_white(picture_B4HW: Tensor) -> Tensor:
    return picture_B4HW[:, :3] * picture_B4HW[:, 3:] + 1.0 - picture_B4HW[:, 3:]
