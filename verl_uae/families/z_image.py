# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Z-Image: the last state but one of Qwen3-4B; lists of samples, time and velocity the other way round.

Shape legend: B samples, L text positions, C H W latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers.loaders import ZImageLoraLoaderMixin
from torch import Tensor

from verl_uae.checkpoints.names import TRANSFORMER, VAE
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import Tokens, around_caption, template_tokens


class ZImage(DecoderFamily):
    """Texts are lists without pads; the transformer fills them up with a token of its own."""

    name = "z_image"
    components: ClassVar[Mapping[str, Any]] = {TRANSFORMER: ZImageTransformer2DModel, VAE: AutoencoderKL}
    lora_loader = ZImageLoraLoaderMixin
    # 5 where the pipeline says v_c + scale (v_c - v_u).
    guidance = 6.0
    longest = 512
    reads = ("qwen3",)
    licence = "Apache-2.0"

    @property
    def state_width(self) -> int:
        """E."""
        return int(self.transformer_config.cap_feat_dim)

    def input_layer(self, transformer: Any) -> Any:
        """The projection of patches."""
        return next(iter(transformer.all_x_embedder.values()))

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """The last but one."""
        return (num_layers - 1,)

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """The template's turn with thinking on, which adds nothing."""
        before, after = around_caption(tokenizer, enable_thinking=True)
        return template_tokens(tokenizer, before, [caption.strip() for caption in captions], after, room=self.length)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        texts = [states[:length] for states, length in zip(condition.states, condition.lengths, strict=True)]
        output = parts.transformer(list(x_BCHW.unsqueeze(2)), 1.0 - sigma_B, texts, return_dict=False)[0]
        return -torch.stack(list(output)).squeeze(2)
