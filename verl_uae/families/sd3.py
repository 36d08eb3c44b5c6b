# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 3 and 3.5, conditioned on a language model by a projector of ours.

SD3 was made for CLIP and T5. The projector takes their place and has to be pre-trained; the pooled vector is constant.

Shape legend: B samples, L text positions, E language-model width, F text width of the MM-DiT, P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin, SD3Transformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import SD3LoraLoaderMixin
from torch import Tensor, nn

from verl_uae.checkpoints.names import CONDITIONER, TRANSFORMER, VAE
from verl_uae.errors import CheckpointError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import NORMED, Tokens, around_caption, template_tokens


class Projector(ModelMixin, ConfigMixin):
    """Linear - GELU - Linear, plus the constant pooled vector.

    The layout is the released model's (2048 -> 8192 -> 4096 for Qwen2.5-VL-3B and SD3.5-Large). SD3 also wants
    a pooled CLIP vector; the method uses the one of the empty prompt for every picture, so it is stored here as
    a buffer and no CLIP or T5 is loaded.

    Args:
        in_dim: E, hidden size of the language model.
        hidden_dim: width between the two layers.
        out_dim: F, ``joint_attention_dim`` of the transformer.
        pooled_dim: P, ``pooled_projection_dim`` of the transformer.
    """

    pooled: Tensor

    @register_to_config
    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
        self.register_buffer("pooled", torch.zeros(pooled_dim))

    def forward(self, states_BLE: Tensor) -> Tensor:
        """Project states of shape (B, L, E) to (B, L, F)."""
        return self.layers(states_BLE)


#: Component, its size -> that of the transformer which is the same number.
_FITS = {
    (CONDITIONER, "out_dim"): "joint_attention_dim",
    (CONDITIONER, "pooled_dim"): "pooled_projection_dim",
}


class SD3(DecoderFamily):
    """The last, normed state of a caption in a turn of a role of our own; pads are zero and, without a text mask,
    attended, so every caption has the same number of positions."""

    name = "sd3"
    components: ClassVar[Mapping[str, Any]] = {
        TRANSFORMER: SD3Transformer2DModel,
        VAE: AutoencoderKL,
        CONDITIONER: Projector,
    }
    trained: ClassVar[Mapping[str, str]] = {"transformer": TRANSFORMER, "projector": CONDITIONER}
    # Attention projections of both streams (Flow-GRPO, arXiv 2505.05470, code).
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    lora_loader = SD3LoraLoaderMixin
    steps = 40
    guidance = 4.5
    needs_projector = True
    longest = 640
    default_role = "generate"
    licence = "Stability AI Community License"

    def __init__(self, *args: Any, length: int | None = None, **options: Any) -> None:
        super().__init__(*args, length=length, **options)
        # Ours to choose, not a limit of the model.
        self.length = length or self.longest

    @property
    def state_width(self) -> int:
        """E of the projector."""
        return int(self.configs[CONDITIONER].in_dim)

    def check(
        self, where: str | Path, width: int | None = None, layers: int | None = None, kind: str | None = None
    ) -> None:
        """See :meth:`DecoderFamily.check`."""
        super().check(where)
        transformer = self.transformer_config
        for (name, ours), theirs in _FITS.items():
            own, wanted = getattr(self.configs[name], ours), getattr(transformer, theirs)
            if own != wanted:
                raise CheckpointError(f"{where}/{name}", f"{ours} {own} is not the transformer's {theirs} {wanted}")
        if transformer.out_channels not in (None, transformer.in_channels):
            raise CheckpointError(
                f"{where}/{TRANSFORMER}",
                f"out_channels {transformer.out_channels} is not its in_channels {transformer.in_channels}",
            )
        if width not in (None, self.state_width):
            raise CheckpointError(
                f"{where}/{CONDITIONER}",
                f"takes states of width {self.state_width}, the language model has width {width}",
            )

    def input_layer(self, transformer: Any) -> Any:
        """The projection of patches."""
        return transformer.pos_embed.proj

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """The last state."""
        return (NORMED,)

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """One fixed length: the number of pads would otherwise change the picture."""
        before, after = around_caption(tokenizer, self.role)
        return template_tokens(
            tokenizer, before, captions, after, room=self.length, pad_to=lambda _: self.length, positions=False
        )

    def condition(self, states_BTKE: Tensor, tokens: Tokens) -> Condition:
        """Zero at pads, all of which exist."""
        keep_BT1 = tokens.keep_BT.to(states_BTKE.device, non_blocking=True).unsqueeze(-1)
        states_BLE = states_BTKE[:, :, 0] * keep_BT1.to(states_BTKE.dtype)
        return Condition.whole(states_BLE)

    def embed(self, parts: Any, condition: Condition) -> Condition:
        """The text stream of the transformer, (B, L, F)."""
        # A layer's dtype, not the module's: under FSDP that is the one it is stored in.
        dtype = parts.projector.layers[0].weight.dtype
        return Condition(parts.projector(condition.states.to(dtype)), condition.lengths)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        # Named device: an offloaded projector is back on the host by now.
        pooled_BP = parts.projector.pooled.to(x_BCHW.device, x_BCHW.dtype).expand(len(x_BCHW), -1)
        return parts.transformer(
            hidden_states=x_BCHW,
            timestep=sigma_B * 1000.0,
            encoder_hidden_states=condition.states,
            pooled_projections=pooled_BP,
            return_dict=False,
        )[0]

    @property
    def latent_factor(self) -> int:  # type: ignore[override]
        """Of the VAE."""
        return 2 ** (len(self.vae_config.block_out_channels) - 1)

    @property
    def patch(self) -> int:  # type: ignore[override]
        """Of the transformer."""
        return int(self.transformer_config.patch_size)

    @property
    def default_side(self) -> int:  # type: ignore[override]
        """What the transformer was made for."""
        return int(self.transformer_config.sample_size) * self.latent_factor

    @property
    def largest(self) -> int | None:
        """Without a table of positions they are computed, for any number of patches."""
        positions = self.transformer_config.pos_embed_max_size
        return positions * self.latent_factor * self.patch if positions else None
