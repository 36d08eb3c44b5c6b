# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""SANA: the last state of Gemma-2 behind a long instruction, a deep codec at 1/32.

Shape legend: B samples, T tokens, L text positions, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from diffusers.loaders import SanaLoraLoaderMixin
from torch import Tensor

from verl_uae.checkpoints.names import SCHEDULER, SCHEDULER_CONFIG, TRANSFORMER, VAE
from verl_uae.checkpoints.source import read_object
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import NORMED, Tokens
from verl_uae.text import is_number

#: Read before every caption but the negative one, and left out of the condition.
INSTRUCTION = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for "
        "image generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
        "relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
        "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
        "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass "
        "skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    )
)


class Sana(DecoderFamily):
    """The transformer has a text mask."""

    name = "sana"
    components: ClassVar[Mapping[str, Any]] = {TRANSFORMER: SanaTransformer2DModel, VAE: AutoencoderDC}
    lora_loader = SanaLoraLoaderMixin
    lora_targets = ("to_q", "to_k", "to_v")
    steps = 20
    guidance = 4.5
    longest = 300
    reads = ("gemma2",)
    licence = "NVIDIA License (NSCL v2-custom, non-commercial); Gemma Terms of Use for its language model"
    positive: ClassVar[Mapping[str, tuple[str, ...]]] = {TRANSFORMER: ("timestep_scale",)}
    latent_factor = 32
    patch = 1

    @classmethod
    def read_scheduler(cls, root: Path) -> Mapping[str, Any]:
        """The shift of the published solver, DPM-Solver++, has a name of its own."""
        settings = read_object(root / SCHEDULER / SCHEDULER_CONFIG)
        if "flow_shift" not in settings:
            return super().read_scheduler(root)
        if not settings.get("use_flow_sigmas"):
            raise CheckpointError(root / SCHEDULER, "use_flow_sigmas is off: no scheduler of flow matching")
        shift = settings["flow_shift"]
        if not (is_number(shift) and shift > 0):
            raise CheckpointError(root / SCHEDULER, f"flow_shift must be a positive number, got {shift!r}")
        return FlowMatchEulerDiscreteScheduler(shift=shift).config

    @property
    def state_width(self) -> int:
        """E."""
        return int(self.transformer_config.caption_channels)

    def input_layer(self, transformer: Any) -> Any:
        """The projection of patches."""
        return transformer.patch_embed.proj

    def wrap_blocks(self, transformer: Any) -> list[str]:
        """Without the projection of patches, which as a unit of its own would not show the dtype of computation."""
        return [name for name in super().wrap_blocks(transformer) if name != type(transformer.patch_embed).__name__]

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """The last state, normed."""
        return (NORMED,)

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """The first token and the last ones of instruction and caption, which are one text: tokens may reach over the
        border."""
        # The first token and the last of the instruction are kept.
        if self.length < 3:
            raise ConfigError("condition_length", f"{self.length} leaves no room for a caption")
        instruction = "" if negative else INSTRUCTION
        rows = [
            tokenizer(instruction + caption.lower().strip(), split_special_tokens=True)["input_ids"]
            for caption in captions
        ]
        # Two less than both: the pipeline takes a first and a last token of the instruction for special ones.
        length = self.length if negative else len(tokenizer(instruction)["input_ids"]) + self.length - 2
        ids_BT = torch.full((len(rows), length), tokenizer.pad_token_id, dtype=torch.long)
        for ids_T, row in zip(ids_BT, rows, strict=True):
            ids_T[: len(row)] = torch.tensor(row[:length])
        end_B = torch.tensor([len(row) for row in rows])
        position_BT = torch.arange(length).repeat(len(rows), 1)
        attend_BT = position_BT < end_B[:, None]
        keep_BT = attend_BT & ((position_BT == 0) | (position_BT > length - self.length))
        return Tokens(ids_BT, attend_BT, keep_BT, end_B > length, position_BT)

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DecoderFamily.forward`."""
        return parts.transformer(
            x_BCHW,
            encoder_hidden_states=condition.states,
            encoder_attention_mask=condition.mask_BL,
            timestep=sigma_B * 1000.0 * self.transformer_config.timestep_scale,
            return_dict=False,
        )[0]

    def encode(self, vae: Any, image_B3HW: Tensor) -> Tensor:
        """No posterior."""
        return vae.encode(image_B3HW).latent.float() * vae.config.scaling_factor

    def decode(self, vae: Any, latent_BCHW: Tensor) -> Tensor:
        """Latents to pictures in about [-1, 1]; differentiable."""
        return vae.decode(latent_BCHW.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
