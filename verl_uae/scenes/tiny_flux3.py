# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builders of a tiny pair that shares its language model: Qwen3-VL captions, and FLUX 3 draws from its states.

The language model has 32 layers, since FLUX 3 reads the states of layers 4, 8 ... 32; it is narrow in return.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux3Transformer2DModel
from torch import nn

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.names import TRANSFORMER, VAE
from verl_uae.compat import ensure_torchvision
from verl_uae.families.family import Condition
from verl_uae.families.text import Tokens, tap_states
from verl_uae.scenes.codec import LATENT_CHANNELS
from verl_uae.scenes.tokenizer import (
    GRID,
    MERGE_SIZE,
    PATCH_SIZE,
    PICTURE_TOKENS,
    TEMPORAL_PATCH_SIZE,
    TEXT_TOKENS,
    generation_config,
)
from verl_uae.seeding import derive_seed

HIDDEN_SIZE = 48
"""Width of the language model."""
_LAYERS, _WIDTH = 32, 96


def build_captioner(seed: int, tokenizer: Any) -> Any:
    """A `Qwen3VLForConditionalGeneration` in fp32, the same for the same seed on one platform."""
    ensure_torchvision()
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 2, 2],
                "mrope_interleaved": True,
            },
            **TEXT_TOKENS,
            "tie_word_embeddings": False,
            "initializer_range": 0.1,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "num_position_embeddings": GRID**2,
            "deepstack_visual_indexes": [0, 1],
            "out_hidden_size": HIDDEN_SIZE,
            "initializer_range": 0.08,
        },
        **PICTURE_TOKENS,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "scenes-qwen3-vl"))
        model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        # As deep a stack starts out near the identity, or its first states drown.
        for layer in model.model.language_model.layers:
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                branch.weight.mul_(1 / math.sqrt(2 * _LAYERS))
    model.generation_config = generation_config(tokenizer)
    return model.eval()


def build_vae(codec: AutoencoderKL) -> AutoencoderKLFlux2:
    """The codec of the scenes in FLUX.2's class: 2x2 latents become channels, statistics replace scale and shift."""
    config: Any = codec.config
    shared = (
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "layers_per_block",
        "latent_channels",
        "norm_num_groups",
        "mid_block_add_attention",
        "use_quant_conv",
        "use_post_quant_conv",
        "sample_size",
    )
    vae = AutoencoderKLFlux2(**{name: config[name] for name in shared})
    vae.load_state_dict(codec.state_dict(), strict=False)
    eps = vae.config["batch_norm_eps"]
    vae.bn.running_mean.fill_(config.shift_factor)
    vae.bn.running_var.fill_(1 / config.scaling_factor**2 - eps)
    return vae.eval()


def build_decoder(seed: int, codec: AutoencoderKL) -> Decoder:
    """A `Decoder` of the family ``flux3``, in fp32: four image tokens, each a quarter of the picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "scenes-flux3"))
        transformer = Flux3Transformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            cond_in_channels=4 * LATENT_CHANNELS,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=24,
            num_attention_heads=_WIDTH // 24,
            axes_dims_rope=(6, 6, 6, 6),
            joint_attention_dim=8 * HIDDEN_SIZE,
        )
        _open(transformer)
    vae = build_vae(codec)
    return Decoder.of({TRANSFORMER: transformer, VAE: vae}, {"shift": 1.0})


@torch.no_grad()
def _open(transformer: Any) -> None:
    """Start every block as an ordinary residual block, with an output of zero.

    Modulations have no bias: gates are written as the projection on the mean of the time embedding, which is near 1 at
    every noise level.
    """
    embedder = transformer.timestep_embedder
    for layer in (embedder.linear_1, embedder.linear_2):
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
    time_T = torch.linspace(0.0, 1000.0, 65)
    mean_D = nn.functional.silu(embedder(transformer.time_proj(time_T))).mean(0)
    for modulations in (transformer.early_stream_modulations, transformer.single_stream_modulations):
        for modulation in modulations.values():
            nn.init.normal_(modulation.linear.weight, std=0.02)
            modulation.linear.weight[2 * _WIDTH :] = mean_D / mean_D.square().sum()
    nn.init.zeros_(transformer.proj_out.weight)


def condition(conditioner: Conditioner, captions: Sequence[str]) -> Condition:
    """Condition of captions, differentiable, in a third of the time of ``Conditioner.condition``: all pads of a caption
    are one token at one position behind the same text, so the state of the first is that of all."""
    tokens, stack = conditioner.tokenize(captions), conditioner.language_model
    end_B = tokens.attend_BT.sum(1)
    kept = min(int(end_B.max()) + 1, tokens.ids_BT.shape[1])
    read = Tokens.read(
        {name: tensor[:, :kept] if tensor.ndim == 2 else tensor for name, tensor in tokens.stored().items()}
    )
    state_BTKE = tap_states(stack, read, conditioner.family.taps(_LAYERS))
    place_BT = torch.arange(tokens.ids_BT.shape[1]).minimum(end_B[:, None]).clamp(max=kept - 1)
    row_B1 = torch.arange(len(place_BT))[:, None]
    return conditioner.family.condition(state_BTKE[row_B1, place_BT], tokens)
