# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from tests.families.contract import CAPTIONS, Contract, change, edited, states
from tests.families.tiny import Tiny
from verl_uae.errors import CheckpointError
from verl_uae.families import family_of
from verl_uae.families.family import DecoderFamily


class TestFlux2Klein(Contract):
    name = "flux2_klein"
    # The pipeline has no other.
    negative = ""

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        return pipe.encode_prompt(caption, device="cpu")[0][0].detach()

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        return pipe(prompt=caption, guidance_scale=scale, latents=noise_BCHW, output_type="pt", **options).images

    def ending(self, tokenizer: Any) -> list[int]:
        return tokenizer("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")["input_ids"]

    def test_all_512_positions_are_read(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        assert tokens.keep_BT.sum(1).tolist() == [512, 512]
        found = states(family, tiny, tokens)
        assert change(family, tiny, tokens, found * tokens.attend_BT[..., None, None]) > 5e-3
        assert change(family, tiny, replace(tokens, keep_BT=tokens.attend_BT)) > 5e-3

    def test_a_shorter_limit_cuts_captions_and_not_the_condition(self, folder: Path, tiny: Tiny) -> None:
        tokens = family_of(folder, length=60).tokenize(tiny.tokenizer, CAPTIONS)
        assert tokens.truncated_B.tolist() == [True, False] and tokens.attend_BT.sum(1).tolist() == [60, 38]
        assert tokens.keep_BT.sum(1).tolist() == [512, 512]

    @pytest.mark.parametrize("side", [256, 1024, 2048])
    @pytest.mark.parametrize("steps", [4, 28, 50, 200])
    def test_the_shift_is_fitted_on_pixels_and_steps(self, family: DecoderFamily, side: int, steps: int) -> None:
        tokens = family.image_tokens(side, side)
        assert tokens == (side // 16) ** 2
        assert family.mu(steps, tokens) == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-12)

    def test_both_kinds_of_blocks_are_adapted(self, family: DecoderFamily, tiny: Tiny) -> None:
        """`to_out` is a list in one and a layer in the other."""
        from peft.tuners.tuners_utils import check_target_module_exists

        config = type("Config", (), {"target_modules": family.lora_targets, "exclude_modules": None})
        names = [name for name, _ in tiny.transformer.named_modules() if check_target_module_exists(config, name)]
        single, double = (
            {name.removeprefix(block) for name in names if name.startswith(block)}
            for block in ("single_transformer_blocks.0.", "transformer_blocks.0.")
        )
        assert single == {"attn.to_qkv_mlp_proj", "attn.to_out"}
        assert double == {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"}

    def test_a_model_that_takes_the_scale_of_guidance_is_refused_by_name(self, folder: Path, tmp_path: Path) -> None:
        dev = edited(folder, "transformer/config.json", tmp_path / "dev", guidance_embeds=True)
        with pytest.raises(CheckpointError, match=r"guidance_embeds: FLUX.2-dev .* take FLUX.2-klein"):
            family_of(dev)
