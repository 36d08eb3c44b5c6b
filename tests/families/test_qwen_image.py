# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.contract import CAPTIONS, Contract, change, edited
from tests.families.tiny import Tiny
from verl_uae.errors import CheckpointError
from verl_uae.families import family_of
from verl_uae.families.codecs import pack
from verl_uae.families.family import DecoderFamily
from verl_uae.seeding import normal


class TestQwenImage(Contract):
    name = "qwen_image"

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        states_BLE, mask_BL = pipe.encode_prompt(caption, device="cpu")
        assert mask_BL is None
        return states_BLE[0].detach()

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        latents = pipe._pack_latents(noise_BCHW, *noise_BCHW.shape)
        negative = {"negative_prompt": self.negative} if scale > 1.0 else {}
        arguments = {"true_cfg_scale": scale, "latents": latents, "output_type": "pt"}
        return pipe(prompt=caption, **negative, **arguments, **options).images

    @torch.no_grad()
    def through_codec(self, vae: Any, picture_B3HW: Tensor) -> Tensor:
        return super().through_codec(vae, picture_B3HW.unsqueeze(2)).squeeze(2)

    def last_text(self, name: str) -> bool:
        unread = ("attn.add_q_proj.", "attn.to_add_out.", "attn.norm_added_q.", "txt_mlp.")
        return name.startswith(tuple(f"transformer_blocks.1.{part}" for part in unread))

    def test_the_instruction_is_read_and_left_out(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        assert not bool(tokens.keep_BT[:, 0].any())
        start = tokens.keep_BT[0].long().argmax()
        assert tiny.tokenizer.decode(tokens.ids_BT[0, start : start + 9]) == CAPTIONS[0][:9]
        assert change(family, tiny, replace(tokens, keep_BT=tokens.attend_BT)) > 1e-3
        alone = replace(tokens, attend_BT=tokens.keep_BT)
        assert change(family, tiny, alone) > 1e-3

    def test_guidance_keeps_the_length_of_the_velocity_in_every_patch(self, family: DecoderFamily) -> None:
        v_c, v_u = (normal((2, 16, 4, 6), name) for name in ("v_c", "v_u"))
        guided = family.guide(v_c, v_u, 5.0)
        torch.testing.assert_close(pack(guided).norm(dim=-1), pack(v_c).norm(dim=-1))
        plain = pack(v_u + 5.0 * (v_c - v_u))
        torch.testing.assert_close(torch.cosine_similarity(pack(guided), plain, dim=-1), torch.ones(2, 6))

    def test_the_last_level_is_the_schedulers(self, family: DecoderFamily) -> None:
        assert family.sigmas(20, 1024, 1024)[-2:].tolist() == pytest.approx([0.02, 0.0])

    def test_a_model_that_takes_the_scale_of_guidance_is_refused_by_name(self, folder: Path, tmp_path: Path) -> None:
        distilled = edited(folder, "transformer/config.json", tmp_path / "distilled", guidance_embeds=True)
        with pytest.raises(CheckpointError, match=r"guidance_embeds: a distilled Qwen-Image .* take Qwen-Image"):
            family_of(distilled)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"latents_mean": [0.0]}, "latents_mean has 1 numbers, latents have 16 channels"),
            ({"z_dim": 4}, "gives latents of 4 channels, the transformer takes 16"),
        ],
    )
    def test_a_codec_of_other_latents_is_refused(
        self, folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str
    ) -> None:
        odd = edited(folder, "vae/config.json", tmp_path / "odd", **changes)
        with pytest.raises(CheckpointError, match=f"vae: {reason}"):
            family_of(odd).check(odd)

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("latents_mean", None, "must be a list of numbers, got None"),
            ("latents_std", "1.0", "must be a list of numbers"),
            ("latents_std", [1.0, "x"] * 8, "must be a list of numbers"),
            ("latents_mean", [float("nan")] * 16, "must be a list of numbers"),
            ("latents_std", [1.0] * 15 + [0.0], "must be above 0 in every channel, got 0.0"),
            ("latents_std", [1.0] * 15, "has 15 numbers, latents have 16 channels"),
        ],
    )
    def test_statistics_of_latents_are_numbers_of_every_channel(
        self, folder: Path, tmp_path: Path, name: str, value: Any, reason: str
    ) -> None:
        odd = edited(folder, "vae/config.json", tmp_path / "odd", **{name: value})
        with pytest.raises(CheckpointError, match=f"vae: {name} {reason}"):
            family_of(odd).check(odd)
