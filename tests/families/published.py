# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Decoders of the published sizes, which are the defaults of nearly all classes, without weights."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from verl_uae.families import family_class
from verl_uae.families.family import DecoderFamily

#: Class of transformer -> what is not its default: FLUX.2's is that of FLUX.2-dev, the codec of Z-Image is FLUX.1's.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "Flux3Transformer2DModel": {},
    "Flux2Transformer2DModel": {
        "transformer": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        }
    },
    "QwenImageTransformer2DModel": {},
    "Krea2Transformer2DModel": {},
    "QwenImage21Transformer2DModel": {},
    "ZImageTransformer2DModel": {
        "vae": {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 16,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    },
    "SanaTransformer2DModel": {},
}

_BLOCKS = ("num_layers", "num_single_layers", "n_layers")


def published(kind: str, blocks: int | None = None) -> tuple[DecoderFamily, dict[str, dict[str, Any]]]:
    """A family of the published size, and its components' arguments; ``blocks`` of each kind where it is given."""
    found = family_class(kind)
    arguments: dict[str, dict[str, Any]] = {}
    for name, part in found.components.items():
        defaults = {key: value.default for key, value in inspect.signature(part.__init__).parameters.items()}
        arguments[name] = {key: value for key, value in defaults.items() if key != "self"}
        arguments[name].update(SIZES[kind].get(name, {}))
    if blocks is not None:
        arguments["transformer"].update({name: blocks for name in _BLOCKS if name in arguments["transformer"]})
    configs = {name: SimpleNamespace(**values) for name, values in arguments.items()}
    return found(configs, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config), arguments


def on_meta(family: DecoderFamily, arguments: dict[str, dict[str, Any]]) -> Any:
    """Its modules on ``meta``: the transformer in bf16, the codec in fp32."""
    with torch.device("meta"):
        parts = {name: part(**arguments[name]).eval() for name, part in family.components.items()}
    parts["transformer"].to(torch.bfloat16)
    return SimpleNamespace(**parts)
