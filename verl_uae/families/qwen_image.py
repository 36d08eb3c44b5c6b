# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image: the last state of Qwen2.5-VL-7B, guidance that keeps the length of the velocity.

Shape legend: B samples, L text positions, C H W latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.loaders import QwenImageLoraLoaderMixin
from torch import Tensor

from verl_uae.checkpoints.names import TRANSFORMER, VAE
from verl_uae.families.codecs import FrameCodec, pack, unpack
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import NORMED, Tokens, count_tokens, template_tokens

#: Around a caption; what stands before it is read by the language model and left out of the condition.
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


class QwenImage(FrameCodec, DecoderFamily):
    """The transformer has a text mask."""

    name = "qwen_image"
    components: ClassVar[Mapping[str, Any]] = {TRANSFORMER: QwenImageTransformer2DModel, VAE: AutoencoderKLQwenImage}
    lora_loader = QwenImageLoraLoaderMixin
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    longest = 1024
    reads = ("qwen2_5_vl",)
    licence = "Apache-2.0"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.transformer_config.guidance_embeds:
            raise ValueError("guidance_embeds: a distilled Qwen-Image takes the scale of guidance; take Qwen-Image")

    @property
    def state_width(self) -> int:
        """E."""
        return int(self.transformer_config.joint_attention_dim)

    @property
    def latent_channels(self) -> int:
        """C, of 2x2 patches as tokens."""
        return int(self.transformer_config.in_channels) // 4

    def input_layer(self, transformer: Any) -> Any:
        """The projection of image tokens."""
        return transformer.img_in

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """The last state, normed."""
        return (NORMED,)

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """The prefix is counted with the tokenizer: 34 tokens hold for Qwen's vocabulary alone."""
        drop = count_tokens(tokenizer, BEFORE)
        texts = [caption.strip() for caption in captions]
        return template_tokens(tokenizer, BEFORE, texts, AFTER, room=self.length + drop, drop=drop)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        height, width = x_BCHW.shape[-2:]
        output = parts.transformer(
            hidden_states=pack(x_BCHW),
            encoder_hidden_states=condition.states,
            encoder_hidden_states_mask=condition.mask_BL if len(set(condition.lengths)) > 1 else None,
            timestep=sigma_B,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_BCHW),
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def guide(self, conditional_BCHW: Tensor, unconditional_BCHW: Tensor, scale: float) -> Tensor:
        """Guided velocity with the length that the conditional one has in each 2x2 patch."""
        guided_BND = pack(super().guide(conditional_BCHW, unconditional_BCHW, scale))
        length_BN1 = pack(conditional_BCHW).norm(dim=-1, keepdim=True)
        scaled_BND = guided_BND * (length_BN1 / guided_BND.norm(dim=-1, keepdim=True))
        return unpack(scaled_BND, *conditional_BCHW.shape[-2:])
