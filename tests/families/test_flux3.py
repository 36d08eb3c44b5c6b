# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.contract import CAPTIONS, Contract, change, edited, load, states
from tests.families.tiny import Tiny
from verl_uae.errors import CheckpointError
from verl_uae.families import family_of
from verl_uae.families.family import DecoderFamily


class TestFlux3(Contract):
    name = "flux3"

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        block = pipe.blocks.sub_blocks["text_encoder"]
        return block._get_qwen3_vl_prompt_embeds(pipe.text_encoder, pipe.tokenizer, caption)[0]

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        pipe.guider.guidance_scale = scale
        negative = {"negative_prompt": self.negative} if scale > 1.0 else {}
        return pipe(prompt=caption, **negative, latents=noise_BCHW, output="images", output_type="pt", **options)

    def test_pads_of_a_window_are_read_and_the_window_is_the_captions_own(
        self, family: DecoderFamily, tiny: Tiny
    ) -> None:
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        assert tokens.keep_BT.sum(1).tolist() == [160, 80]
        found = states(family, tiny, tokens)
        assert change(family, tiny, tokens, found * tokens.attend_BT[..., None, None]) > 5e-3
        assert change(family, tiny, replace(tokens, keep_BT=tokens.attend_BT)) > 5e-3
        assert change(family, tiny, replace(tokens, keep_BT=torch.ones_like(tokens.keep_BT))) > 1e-3

    def test_every_pad_has_the_position_one(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        assert tokens.position_BT is not None
        counted = torch.arange(tokens.ids_BT.shape[1]).expand_as(tokens.ids_BT)
        assert torch.equal(tokens.position_BT[tokens.attend_BT], counted[tokens.attend_BT])
        assert change(family, tiny, replace(tokens, position_BT=counted)) > 1e-3

    def test_a_flow_map_is_refused_by_name(self, folder: Path, tmp_path: Path) -> None:
        distilled = edited(folder, "transformer/config.json", tmp_path / "distilled", flow_map=True)
        with pytest.raises(CheckpointError, match=r"flow_map: a distilled FLUX 3 .* take FLUX 3 Image Klein Base"):
            family_of(distilled)

    def test_a_folder_without_scheduler_has_the_published_shift(self, folder: Path, tmp_path: Path) -> None:
        assert not (folder / "scheduler").exists() and family_of(folder).shift(50, 1024, 1024) == 6.93
        assert family_of(folder, shift=3.0).shift(50, 1024, 1024) == 3.0

    def test_norms_stay_in_full_precision_beside_half_precision(self, family: DecoderFamily, folder: Path) -> None:
        """Which one flat parameter for a block cannot hold: FSDP2 takes it."""
        transformer = load(family, folder, dtype=torch.bfloat16)
        kinds = {name: value.dtype for name, value in transformer.named_parameters()}
        assert {torch.float32, torch.bfloat16} == set(kinds.values())
        assert all("norm" in name for name, dtype in kinds.items() if dtype == torch.float32)

    @pytest.mark.parametrize("value", [None, "1e-4", 0, -1.0])
    def test_the_batch_norm_of_the_codec_divides_by_no_zero(self, folder: Path, tmp_path: Path, value: Any) -> None:
        odd = edited(folder, "vae/config.json", tmp_path / "odd", batch_norm_eps=value)
        with pytest.raises(CheckpointError, match="vae: batch_norm_eps must be a number above 0"):
            family_of(odd).check(odd)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("rope_theta", (0, -1, "2000", None)),
            ("axes_dims_rope", (None, 4, [], [4, 4, 4], [4, 4, 5, 3], [8, 8, 4, -4], ["4"] * 4, [4.0] * 4)),
        ],
    )
    def test_positions_that_no_weight_tells_of_are_checked(
        self, folder: Path, tmp_path: Path, name: str, values: tuple[Any, ...]
    ) -> None:
        for number, value in enumerate(values):
            odd = edited(folder, "transformer/config.json", tmp_path / str(number), **{name: value})
            with pytest.raises(CheckpointError, match=f"transformer: {name} must be"):
                family_of(odd).check(odd)
