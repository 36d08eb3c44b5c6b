# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image-2.1: the last state of Qwen3-VL-8B before its norm, a codec of pictures with opacity.

Shape legend: B samples, L text positions, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from diffusers.loaders import QwenImageLoraLoaderMixin
from torch import Tensor

from verl_uae.checkpoints.names import TRANSFORMER, VAE
from verl_uae.families.codecs import FrameCodec, flat, unflat
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.qwen_image import AFTER
from verl_uae.families.text import Tokens, count_tokens, template_tokens

#: Before a caption; the first part is read by the language model and left out of the condition.
_SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
_USER = "<|im_start|>user\n"


class QwenImage21(FrameCodec, DecoderFamily):
    """The transformer has a text mask, yet pads move the positions of the picture: in a batch a caption would draw
    another picture than alone."""

    name = "qwen_image21"
    components: ClassVar[Mapping[str, Any]] = {
        TRANSFORMER: QwenImage21Transformer2DModel,
        VAE: AutoencoderKLQwenImage21,
    }
    lora_loader = QwenImageLoraLoaderMixin
    steps = 40
    guidance = 1.0
    mixes_lengths = False
    # Of ours: the published pipeline has no limit.
    longest = 4096
    reads = ("qwen3_vl",)
    licence = "Qwen Research License (non-commercial)"
    latent_factor = 16

    @property
    def state_width(self) -> int:
        """E."""
        return int(self.transformer_config.context_in_dim)

    def image_tokens(self, height: int, width: int) -> int:
        """One per latent; :attr:`patch` is what a text position stands for."""
        return super().image_tokens(height, width) * self.patch**2

    def input_layer(self, transformer: Any) -> Any:
        """The projection of image tokens."""
        return transformer.img_in

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """The last state, not normed."""
        return (num_layers,)

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """An empty caption is a blank."""
        drop = count_tokens(tokenizer, _SYSTEM)
        texts = [caption.strip() or " " for caption in captions]
        return template_tokens(tokenizer, _SYSTEM + _USER, texts, AFTER, room=self.length + drop, drop=drop)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        batch, _, height, width = x_BCHW.shape
        length, tokens = condition.states.shape[1], height * width
        # Every text position that is not of the drawn picture, four of whose tokens share one, is a text's.
        drawn = torch.arange(length + tokens // 4, device=x_BCHW.device) >= length
        output = parts.transformer(
            hidden_states=flat(x_BCHW),
            encoder_hidden_states=condition.states,
            timestep=sigma_B,
            img_shapes=[[(1, height, width)]] * batch,
            img_mask=drawn.expand(batch, -1),
            return_dict=False,
        )[0]
        # Behind those of the text.
        return unflat(output[:, -tokens:], height, width)

    def encode(self, vae: Any, image_B3HW: Tensor) -> Tensor:
        """Opaque."""
        return super().encode(vae, torch.cat([image_B3HW, torch.ones_like(image_B3HW[:, :1])], 1))

    def decode(self, vae: Any, latent_BCHW: Tensor) -> Tensor:
        """Laid over white."""
        color_B3HW, opacity_B1HW = super().decode(vae, latent_BCHW).float().clamp(-1.0, 1.0).split([3, 1], 1)
        return 1.0 - (1.0 - color_B3HW) * (opacity_B1HW * 0.5 + 0.5)
