# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2-klein: states of three layers of Qwen3, always 512 text positions, a shift fitted on pixels and steps.

Shape legend: B samples, L text positions, C H W latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.loaders import Flux2LoraLoaderMixin
from torch import Tensor

from verl_uae.checkpoints.names import TRANSFORMER, VAE
from verl_uae.families.codecs import PatchedCodec, flat, grid_ids, unflat
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import Tokens, around_caption, template_tokens


class Flux2Klein(PatchedCodec, DecoderFamily):
    """The transformer has no text mask: pads are attended, with the states that the language model has there."""

    name = "flux2_klein"
    components: ClassVar[Mapping[str, Any]] = {TRANSFORMER: Flux2Transformer2DModel, VAE: AutoencoderKLFlux2}
    lora_loader = Flux2LoraLoaderMixin
    # to_out is a list in double blocks and a layer in single ones, which have one layer for all that is before it.
    lora_targets = r".*\.(to_q|to_k|to_v|to_out\.0|to_qkv_mlp_proj)|single_transformer_blocks\..*\.to_out"
    mixes_lengths = False
    longest = 512
    reads = ("qwen3",)
    licence = "Apache-2.0 (4B); FLUX Non-Commercial License (9B)"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.transformer_config.guidance_embeds:
            raise ValueError("guidance_embeds: FLUX.2-dev takes the scale of guidance as an input; take FLUX.2-klein")

    @property
    def state_width(self) -> int:
        """E."""
        return int(self.transformer_config.joint_attention_dim) // len(self.taps(0))

    def input_layer(self, transformer: Any) -> Any:
        """The projection of image tokens."""
        return transformer.x_embedder

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """Of 36 layers."""
        return (9, 18, 27)

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """An empty thought stands in front of the answer: the template's where thinking is off."""
        before, after = around_caption(tokenizer, enable_thinking=False)
        texts = [caption.strip() for caption in captions]
        return template_tokens(
            tokenizer, before, texts, after, room=self.length, pad_to=lambda _: self.longest, keep_pads=True
        )

    def mu(self, steps: int, tokens: int) -> float:
        """Lines in the number of tokens for 10 and for 200 steps, and a line in the steps through both."""
        at_200 = 0.00016927 * tokens + 0.45666666
        if tokens > 4300:
            return at_200
        at_10 = 8.73809524e-05 * tokens + 1.89833333
        return at_200 + (at_200 - at_10) / 190.0 * (steps - 200.0)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        batch, _, height, width = x_BCHW.shape
        image = grid_ids(1, height, width, 1, device=x_BCHW.device)
        text = grid_ids(1, 1, 1, condition.states.shape[1], device=x_BCHW.device)
        output = parts.transformer(
            hidden_states=flat(x_BCHW),
            encoder_hidden_states=condition.states,
            timestep=sigma_B,
            img_ids=image.expand(batch, -1, -1),
            txt_ids=text.expand(batch, -1, -1),
            guidance=None,
            return_dict=False,
        )[0]
        return unflat(output, height, width)
