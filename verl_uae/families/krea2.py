# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Krea 2: states of twelve layers of Qwen3-VL-4B, which the transformer fuses; template and codec of Qwen-Image.

Shape legend: B samples, L text positions, K tapped layers, E width of the language model, C H W latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
from diffusers.loaders import Krea2LoraLoaderMixin
from torch import Tensor

from verl_uae.checkpoints.names import MODEL_INDEX, TRANSFORMER, VAE
from verl_uae.errors import CheckpointError
from verl_uae.families.codecs import FrameCodec, grid_ids, pack, unpack
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.qwen_image import AFTER, BEFORE
from verl_uae.families.text import Tokens, count_tokens, template_tokens


class Krea2(FrameCodec, DecoderFamily):
    """The transformer has a text mask, and texts have no positions in it."""

    name = "krea2"
    components: ClassVar[Mapping[str, Any]] = {TRANSFORMER: Krea2Transformer2DModel, VAE: AutoencoderKLQwenImage}
    lora_loader = Krea2LoraLoaderMixin
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "to_gate")
    steps = 28
    # 4.5 where the pipeline says v_c + scale (v_c - v_u).
    guidance = 5.5
    longest = 512
    index_options = ("text_encoder_select_layers", "is_distilled")
    reads = ("qwen3_vl",)
    licence = "Krea 2 Community License (below 1 million US dollars of revenue)"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        layers = self.options["text_encoder_select_layers"]
        if layers is not None and not (
            isinstance(layers, list | tuple) and layers and all(type(layer) is int and layer >= 0 for layer in layers)
        ):
            raise ValueError(f"text_encoder_select_layers must be a list of layers from 0, got {layers!r}")
        if not isinstance(self.options["is_distilled"], bool | None):
            raise ValueError(f"is_distilled must be true or false, got {self.options['is_distilled']!r}")

    def check(
        self, where: str | Path, width: int | None = None, layers: int | None = None, kind: str | None = None
    ) -> None:
        """See :meth:`DecoderFamily.check`."""
        super().check(where, width, layers, kind)
        read, wanted = len(self.taps(0)), int(self.transformer_config.num_text_layers)
        if read != wanted:
            text = f"text_encoder_select_layers names {read} layers, the transformer takes states of {wanted}"
            raise CheckpointError(f"{where}/{MODEL_INDEX}", text)

    @property
    def state_width(self) -> int:
        """E."""
        return int(self.transformer_config.text_hidden_dim)

    @property
    def latent_channels(self) -> int:
        """C, of 2x2 patches as tokens."""
        return int(self.transformer_config.in_channels) // 4

    def input_layer(self, transformer: Any) -> Any:
        """The projection of image tokens."""
        return transformer.img_in

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """Those that the folder names, or 2, 5 ... 35."""
        return tuple(self.options["text_encoder_select_layers"] or range(2, 36, 3))

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """The template's end stands behind the pads, where positions count real tokens alone."""
        drop, behind = count_tokens(tokenizer, BEFORE), count_tokens(tokenizer, AFTER)
        texts = [caption.strip() for caption in captions]
        return template_tokens(tokenizer, BEFORE, texts, AFTER, room=self.length + drop, drop=drop, behind_pads=behind)

    def fuse(self, states_LKE: Tensor) -> Tensor:
        """All of them, as they are."""
        return states_LKE

    def mu(self, steps: int, tokens: int) -> float:
        """Constant where the folder says that the model is distilled."""
        return 1.15 if self.options["is_distilled"] else super().mu(steps, tokens)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        height, width = x_BCHW.shape[-2:]
        image = grid_ids(1, height // 2, width // 2, device=x_BCHW.device)
        output = parts.transformer(
            hidden_states=pack(x_BCHW),
            encoder_hidden_states=condition.states,
            encoder_attention_mask=condition.mask_BL,
            timestep=sigma_B,
            position_ids=torch.cat([image.new_zeros(condition.states.shape[1], 3), image]),
            return_dict=False,
        )[0]
        return unpack(output, height, width)
