# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor

from tests.families.contract import CAPTIONS, Contract, change, edited
from tests.families.tiny import Tiny, build
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_of
from verl_uae.families.family import DecoderFamily

#: What the pipeline puts in front of captions unless told otherwise.
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class TestSana(Contract):
    name = "sana"

    @pytest.fixture(scope="class")
    def tiny(self, folder: Path) -> Tiny:
        """Stepping by Euler: the solver is no part of the model."""
        found = build(self.name)
        found.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=found.pipe.scheduler.config.flow_shift)
        return found

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """With the solver as published."""
        root = tmp_path_factory.mktemp(self.name)
        build(self.name).save(root)
        return root / "decoder"

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        return self._encoded(pipe, caption, INSTRUCTION)[0]

    def stock_negative(self, pipe: Any) -> Tensor:
        return self._encoded(pipe, "", INSTRUCTION)[1]

    def _encoded(self, pipe: Any, caption: str, instruction: Any) -> list[Tensor]:
        found = pipe.encode_prompt(
            caption, negative_prompt=self.negative, device="cpu", complex_human_instruction=instruction
        )
        return [states_BLE[mask_BL.bool()].detach() for states_BLE, mask_BL in (found[:2], found[2:])]

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        steps = options["num_inference_steps"]
        return pipe(
            prompt=caption,
            negative_prompt=self.negative,
            guidance_scale=scale,
            latents=noise_BCHW,
            sigmas=torch.linspace(1.0, 1.0 / steps, steps).tolist(),
            use_resolution_binning=False,
            output_type="pt",
            **options,
        ).images

    def ending(self, tokenizer: Any) -> list[int]:
        return []

    @torch.no_grad()
    def through_codec(self, vae: Any, picture_B3HW: Tensor) -> Tensor:
        return (vae.decode(vae.encode(2.0 * picture_B3HW - 1.0).latent).sample / 2.0 + 0.5).clamp(0.0, 1.0)

    def test_the_instruction_is_read_and_left_out_of_captions_alone(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, CAPTIONS)
        # All but the first token: that caption and a few tokens of the instruction are the last 299.
        assert tokens.keep_BT[0, 0] and tokens.keep_BT.sum(1).tolist() == [len(CAPTIONS[0]) + 2, len(CAPTIONS[1]) + 2]
        assert change(family, tiny, replace(tokens, keep_BT=tokens.attend_BT)) > 1e-3
        assert change(family, tiny, family.tokenize(tiny.tokenizer, CAPTIONS, negative=True)) > 1e-3
        bare = family.tokenize(tiny.tokenizer, ["blurry"], negative=True)
        assert tiny.tokenizer.decode(bare.ids_BT[bare.attend_BT]) == "blurry"

    def test_captions_are_lowered(self, family: DecoderFamily, tiny: Tiny) -> None:
        upper, lower = (family.tokenize(tiny.tokenizer, [caption]).ids_BT for caption in ("A FOX", "a fox"))
        assert torch.equal(upper, lower)

    def test_the_shift_is_that_of_the_published_solver(self, folder: Path, tmp_path: Path) -> None:
        file = "scheduler/scheduler_config.json"
        assert family_of(folder).shift(20, 1024, 1024) == 3.0
        assert family_of(edited(folder, file, tmp_path / "other", flow_shift=2.0)).shift(20, 1024, 1024) == 2.0
        with pytest.raises(CheckpointError, match="use_flow_sigmas is off: no scheduler of flow matching"):
            family_of(edited(folder, file, tmp_path / "noise", use_flow_sigmas=False))
        for shift in (0, None, "3"):
            with pytest.raises(CheckpointError, match="flow_shift must be a positive number"):
                family_of(edited(folder, file, tmp_path / f"shift {shift}", flow_shift=shift))

    def test_a_length_that_holds_no_caption_is_refused(self, folder: Path, tiny: Tiny) -> None:
        with pytest.raises(ConfigError, match="condition_length: 2 leaves no room for a caption"):
            family_of(folder, length=2).tokenize(tiny.tokenizer, [""])
        one = family_of(folder, length=3).tokenize(tiny.tokenizer, ["ab"])
        assert tiny.tokenizer.decode(one.ids_BT[one.keep_BT][1:]) == " a"

    @pytest.mark.parametrize("scale", [None, "0.001", 0, True])
    def test_the_scale_of_the_time_is_a_number_above_0(self, folder: Path, tmp_path: Path, scale: Any) -> None:
        odd = edited(folder, "transformer/config.json", tmp_path / "odd", timestep_scale=scale)
        with pytest.raises(CheckpointError, match="transformer: timestep_scale must be a number above 0"):
            family_of(odd).check(odd)
