# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
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
from verl_uae.families.family import DecoderFamily


class TestKrea2(Contract):
    name = "krea2"
    # The stock pipeline pads further, and products of another size round otherwise: 1.3e-5 with AVX-512.
    states_limit = 3e-5

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        states_BLKE, mask_BL = pipe.encode_prompt(caption, device="cpu")
        return states_BLKE[mask_BL].detach()

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        latents = pipe._pack_latents(noise_BCHW, *noise_BCHW.shape)
        negative = {"negative_prompt": self.negative} if scale > 1.0 else {}
        # v_c + scale (v_c - v_u) there.
        arguments = {"guidance_scale": scale - 1.0, "latents": latents, "output_type": "pt"}
        return pipe(prompt=caption, **negative, **arguments, **options).images

    @torch.no_grad()
    def through_codec(self, vae: Any, picture_B3HW: Tensor) -> Tensor:
        return super().through_codec(vae, picture_B3HW.unsqueeze(2)).squeeze(2)

    def test_positions_count_real_tokens_alone(self, family: DecoderFamily, tiny: Tiny) -> None:
        """The template's end stands behind the pads."""
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        assert tokens.position_BT is not None and bool(tokens.attend_BT[:, -1].all())
        assert not bool(tokens.attend_BT[1].all())
        for position_T, attend_T in zip(tokens.position_BT, tokens.attend_BT, strict=True):
            assert position_T[attend_T].tolist() == list(range(int(attend_T.sum())))
        counted = torch.arange(tokens.ids_BT.shape[1]).expand_as(tokens.ids_BT)
        assert change(family, tiny, replace(tokens, position_BT=counted)) > 1e-4

    def test_the_layers_are_those_that_the_folder_names(self, folder: Path, tmp_path: Path) -> None:
        bare = edited(folder, "model_index.json", tmp_path / "bare", text_encoder_select_layers=None)
        for each in (folder, bare):
            assert family_of(each).taps(36) == (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
        other = edited(folder, "model_index.json", tmp_path / "other", text_encoder_select_layers=[1, 4])
        assert family_of(other).taps(36) == (1, 4)

    @pytest.mark.parametrize("layers", ["abc", [1.5] * 12, [-5] * 12, [], 3])
    def test_what_names_no_layers_is_refused(self, folder: Path, tmp_path: Path, layers: Any) -> None:
        odd = edited(folder, "model_index.json", tmp_path / "odd", text_encoder_select_layers=layers)
        with pytest.raises(CheckpointError, match="text_encoder_select_layers must be a list of layers"):
            family_of(odd)

    def test_as_many_layers_as_the_transformer_takes(self, folder: Path, tmp_path: Path) -> None:
        odd = edited(folder, "model_index.json", tmp_path / "odd", text_encoder_select_layers=[1, 4])
        with pytest.raises(CheckpointError, match="names 2 layers, the transformer takes states of 12"):
            family_of(odd).check(odd)

    def test_settings_of_the_family_are_an_object(self, folder: Path, tmp_path: Path) -> None:
        odd = edited(folder, "model_index.json", tmp_path / "odd", family_options=[1])
        with pytest.raises(CheckpointError, match=r"family_options of model_index\.json must be an object"):
            family_of(odd)

    def test_a_distilled_model_has_one_shift(self, folder: Path, tmp_path: Path) -> None:
        sizes = ((512, 512), (1024, 1024))
        assert len({family_of(folder).shift(28, *size) for size in sizes}) == 2
        distilled = family_of(edited(folder, "model_index.json", tmp_path / "distilled", is_distilled=True))
        assert {distilled.shift(8, *size) for size in sizes} == {math.exp(1.15)}

    @pytest.mark.parametrize("value", ["false", 1, []])
    def test_whether_it_is_distilled_is_true_or_false(self, folder: Path, tmp_path: Path, value: Any) -> None:
        odd = edited(folder, "model_index.json", tmp_path / "odd", is_distilled=value)
        with pytest.raises(CheckpointError, match="is_distilled must be true or false"):
            family_of(odd)

    def test_the_scale_of_guidance_is_in_our_convention(self, family: DecoderFamily) -> None:
        """4.5 in the pipeline's, see :meth:`stock_picture`."""
        assert family.guidance == 4.5 + 1.0
