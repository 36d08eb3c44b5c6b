# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builders of the tiny captioner and decoder: ordinary transformers and diffusers classes, half a million numbers each.

Both are built from a seed alone and saved as ordinary folders. The initial values are not the libraries' defaults where
those do not learn within minutes; every departure says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.names import CONDITIONER, TRANSFORMER, VAE
from verl_uae.compat import ensure_torchvision
from verl_uae.data.schema import IMAGE_MARK
from verl_uae.families.family import Condition
from verl_uae.families.sd3 import Projector
from verl_uae.scenes.codec import LATENT_CHANNELS, LATENT_SIZE
from verl_uae.scenes.render import IMAGE_SIZE
from verl_uae.scenes.tokenizer import (
    MERGE_SIZE,
    PATCH_SIZE,
    PICTURE_TOKENS,
    PROMPT,
    TEMPORAL_PATCH_SIZE,
    TEXT_TOKENS,
    VOCABULARY,
    generation_config,
)
from verl_uae.seeding import derive_seed, normal

HIDDEN_SIZE = 96
"""Width of the language model, of the projector's output and of the transformer."""
CONDITION_LENGTH = 20
"""Fixed text length of the condition: template 5 tokens, longest caption of two objects 14."""

INFERENCE = InferenceSettings(
    condition_length=CONDITION_LENGTH,
    caption_prompt=f"{IMAGE_MARK}{PROMPT}",
    caption_system="",
    max_new_tokens=24,
    temperature=1.0,
    num_inference_steps=6,
    guidance_scale=1.0,
    height=IMAGE_SIZE,
    width=IMAGE_SIZE,
)
"""What the preset ``scenes`` captions and draws with."""

_INITIALIZER_RANGE = 0.08
_POOLED_DIM = 16


def captioner_config(vocabulary_size: int = len(VOCABULARY)) -> Any:
    """`Qwen2_5_VLConfig` of the tiny captioner: with the scenes' words 451 thousand parameters, half of them vision."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLConfig

    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 3 * HIDDEN_SIZE,
        "num_hidden_layers": 2,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 4, 4]},
        **TEXT_TOKENS,
        "tie_word_embeddings": False,
        # transformers' 0.02 is made for widths in the thousands; at width 96 attention starts out blind.
        "initializer_range": _INITIALIZER_RANGE,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_heads": 4,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "window_size": IMAGE_SIZE,
        "fullatt_block_indexes": [0, 1],
        "out_hidden_size": HIDDEN_SIZE,
        "initializer_range": _INITIALIZER_RANGE,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        **PICTURE_TOKENS,
        tie_word_embeddings=False,
    )


def build_captioner(seed: int, tokenizer: Any) -> Any:
    """A `Qwen2_5_VLForConditionalGeneration` in fp32, the same for the same seed and vocabulary on one platform."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        # The name gives the weights of every figure in docs/results.md.
        torch.manual_seed(derive_seed(seed, "scenes-encoder"))
        model = Qwen2_5_VLForConditionalGeneration(captioner_config(len(tokenizer)))
    model.generation_config = generation_config(tokenizer)
    return model.eval()


def build_decoder(seed: int, vae: AutoencoderKL, shift: float = 1.0) -> Decoder:
    """A `Decoder` around a codec, for a timestep shift: SD3 transformer of 628 thousand parameters and a projector, in
    fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "scenes-decoder"))
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_SIZE,
            patch_size=1,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=2,
            num_attention_heads=4,
            attention_head_dim=HIDDEN_SIZE // 4,
            joint_attention_dim=HIDDEN_SIZE,
            caption_projection_dim=HIDDEN_SIZE,
            pooled_projection_dim=_POOLED_DIM,
            pos_embed_max_size=LATENT_SIZE,
            qk_norm="rms_norm",
        )
        _open_gates(transformer)
        projector = Projector(HIDDEN_SIZE, 2 * HIDDEN_SIZE, HIDDEN_SIZE, _POOLED_DIM)
    _separate_positions(transformer)
    return Decoder.of(
        {TRANSFORMER: transformer, VAE: vae, CONDITIONER: projector}, {"shift": shift}, length=CONDITION_LENGTH
    )


def condition(conditioner: Conditioner, captions: Sequence[str]) -> Condition:
    """Condition of captions, differentiable."""
    return conditioner.condition(conditioner.tokenize(captions))


@torch.no_grad()
def _open_gates(transformer: Any) -> None:
    """Start every block as an ordinary residual block, with an output of zero.

    diffusers leaves the six adaLN modulations at small random values, so blocks are almost closed (gates near 0.06) and
    the time embedding almost constant: the background then takes 400 steps to learn instead of 100.
    """
    norms = [norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for norm in (*norms, transformer.norm_out):
        nn.init.normal_(norm.linear.weight, std=0.02)
        nn.init.zeros_(norm.linear.bias)
        if norm.linear.out_features == 6 * HIDDEN_SIZE:
            # Order of the chunks: shift, scale, gate of attention, then the same of the MLP.
            norm.linear.bias.view(6, HIDDEN_SIZE)[[2, 5]] = 1.0
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    embedder = transformer.time_text_embed.timestep_embedder
    for layer in (embedder.linear_1, embedder.linear_2):
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))


@torch.no_grad()
def _separate_positions(transformer: Any) -> None:
    """Overwrite the persistent sin-cos position buffer with fixed normal rows.

    On a 4x4 grid neighbouring sin-cos rows are nearly equal (distance 1.3 at norm 6.9), so patches land in wrong
    places. The buffer is saved and loaded with the weights.
    """
    table = transformer.pos_embed.pos_embed
    table.copy_(normal(tuple(table.shape), "scenes-positions"))
