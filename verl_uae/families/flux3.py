# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX 3 Image Klein Base: states of eight layers of Qwen3-VL-4B, FLUX.2's codec, a constant shift.

Shape legend: B samples, L text positions, C H W latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLFlux2, Flux3Transformer2DModel
from diffusers.loaders import Flux3LoraLoaderMixin
from torch import Tensor

from verl_uae.checkpoints.names import TRANSFORMER, VAE
from verl_uae.families.codecs import PatchedCodec, flat, grid_ids, unflat
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import Tokens, around_caption, template_tokens

#: Texts are padded to a multiple of as many tokens.
_WINDOW = 80


class Flux3(PatchedCodec, DecoderFamily):
    """The transformer has no text mask and attends pads, so the padded length is part of a caption's condition, and
    must not depend on the rest of the batch. States of pads depend on their position, which is 1 for all of them."""

    name = "flux3"
    components: ClassVar[Mapping[str, Any]] = {TRANSFORMER: Flux3Transformer2DModel, VAE: AutoencoderKLFlux2}
    lora_loader = Flux3LoraLoaderMixin
    lora_targets = (
        r"(mode_blocks\.image|txt_mode_blocks|single_transformer_blocks)\.\d+\."
        r"(.*\.)?(to_q|to_k|to_v|to_out\.0|linear_in|linear_out)"
    )
    # Of reference pictures.
    frozen = (
        "mode_blocks.image_cond.",
        "x_embedders.image_cond.",
        "early_stream_modulations.image_cond.",
        "single_stream_modulations.image_cond.",
    )
    mixes_lengths = False
    longest = 8192
    reads = ("qwen3_vl",)
    licence = "FLUX Kommunity License (non-commercial, or below 5 million US dollars of revenue)"
    # A modular repository names none: the published pipeline makes it with this shift.
    default_scheduler: ClassVar[Mapping[str, Any]] = {"shift": 6.93}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.transformer_config.flow_map:
            raise ValueError(
                "flow_map: a distilled FLUX 3 predicts the mean velocity of a jump, which no sampler and no objective "
                "here is made for; take FLUX 3 Image Klein Base"
            )

    @property
    def state_width(self) -> int:
        """E."""
        return int(self.transformer_config.joint_attention_dim) // len(self.taps(0))

    def input_layer(self, transformer: Any) -> Any:
        """The projection of image tokens."""
        return transformer.x_embedders["image"]

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """Every fourth of the first 32."""
        return (4, 8, 12, 16, 20, 24, 28, 32)

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """Each caption keeps the pads of its own window."""
        before, after = around_caption(tokenizer)
        texts = [caption.strip() for caption in captions]
        tokens = template_tokens(
            tokenizer, before, texts, after, room=self.length, pad_to=self._window, keep_pads=True, pad_position=1
        )
        window_B = torch.tensor([self._window(int(length)) for length in tokens.attend_BT.sum(1)])
        return replace(tokens, keep_BT=torch.arange(tokens.ids_BT.shape[1]) < window_B[:, None])

    def _window(self, length: int) -> int:
        return min(math.ceil(length / _WINDOW) * _WINDOW, self.longest)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        height, width = x_BCHW.shape[-2:]
        image = grid_ids(1, height, width, 1, device=x_BCHW.device)
        output = parts.transformer(
            hidden_states=flat(x_BCHW),
            encoder_hidden_states=condition.states,
            timestep=sigma_B,
            # In patches of 32 pixels, which the picture has halves of.
            img_ids=image / 2.0,
            txt_ids=grid_ids(1, 1, 1, condition.states.shape[1], device=x_BCHW.device),
            return_dict=False,
        )[0]
        return unflat(output, height, width)
