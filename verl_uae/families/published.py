# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Architectures of published models, without weights: decoders by the name of their preset, language models by hub id.

What is needed to count weights, operations and memory of a run before anything is downloaded. Nearly all are the
defaults of their classes; what differs stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from verl_uae.checkpoints.names import CONDITIONER, TRANSFORMER, VAE
from verl_uae.errors import ConfigError
from verl_uae.families import default_config, family_class
from verl_uae.families.family import DecoderFamily


@dataclass(frozen=True, slots=True)
class PublishedDecoder:
    """What ``uae/decoder`` offers."""

    kind: str
    """Class of the transformer."""
    language_model: str
    """Hub id of the language model it was trained on; for SD3, which has none, the captioner of the paper."""
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Component -> what is not its class's default."""


_SD3_TEXT = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048}
_SD3_LATENTS = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16}
_KL_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_SD3_VAE = {**_KL_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}


def _sd35(layers: int, **changes: Any) -> PublishedDecoder:
    transformer = {
        **_SD3_LATENTS,
        **_SD3_TEXT,
        "num_layers": layers,
        "num_attention_heads": layers,
        "attention_head_dim": 64,
        "caption_projection_dim": 64 * layers,
        "qk_norm": "rms_norm",
        **changes,
    }
    # The projector of the released model.
    projector = {"in_dim": 2048, "hidden_dim": 8192, "out_dim": 4096, "pooled_dim": 2048}
    parts = {TRANSFORMER: transformer, VAE: _SD3_VAE, CONDITIONER: projector}
    return PublishedDecoder("SD3Transformer2DModel", "Qwen/Qwen2.5-VL-3B-Instruct", parts)


#: Choice of ``uae/decoder`` -> its architecture.
DECODERS: Mapping[str, PublishedDecoder] = {
    "sd35_large": _sd35(38, pos_embed_max_size=192),
    "sd35_medium": _sd35(24, pos_embed_max_size=384, dual_attention_layers=tuple(range(13))),
    "flux3_klein_base": PublishedDecoder("Flux3Transformer2DModel", "Qwen/Qwen3-VL-4B-Instruct"),
    "flux2_klein_4b": PublishedDecoder(
        "Flux2Transformer2DModel",
        "Qwen/Qwen3-4B",
        # The defaults are those of FLUX.2-dev.
        {
            TRANSFORMER: {
                "num_layers": 5,
                "num_single_layers": 20,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
                "guidance_embeds": False,
            }
        },
    ),
    "qwen_image": PublishedDecoder("QwenImageTransformer2DModel", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "krea2_raw": PublishedDecoder("Krea2Transformer2DModel", "Qwen/Qwen3-VL-4B-Instruct"),
    "qwen_image21": PublishedDecoder("QwenImage21Transformer2DModel", "Qwen/Qwen3-VL-8B-Instruct"),
    # With the codec of FLUX.1.
    "z_image": PublishedDecoder("ZImageTransformer2DModel", "Qwen/Qwen3-4B", {VAE: _KL_VAE}),
    "sana_1600m": PublishedDecoder("SanaTransformer2DModel", "google/gemma-2-2b-it"),
}

#: Arguments that count blocks.
_BLOCKS = ("num_layers", "num_single_layers", "n_layers")


def published(name: str, blocks: int | None = None, **options: Any) -> tuple[DecoderFamily, dict[str, dict[str, Any]]]:
    """A family of the published size, and its components' arguments.

    Args:
        name: of :data:`DECODERS`.
        blocks: of each kind, where not all are wanted.
        options: of :class:`~verl_uae.families.family.DecoderFamily`.

    Raises:
        ConfigError: there is no such decoder.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if name not in DECODERS:
        raise ConfigError("uae/decoder", f"no published architecture of {name!r} is known: set uae.decoder.path")
    decoder = DECODERS[name]
    found = family_class(decoder.kind)
    arguments: dict[str, dict[str, Any]] = {}
    for part, kind in found.components.items():
        arguments[part] = {**default_config(kind), **decoder.changes.get(part, {})}
    if blocks is not None:
        transformer = arguments[TRANSFORMER]
        transformer.update({key: blocks for key in _BLOCKS if key in transformer})
        if dual := transformer.get("dual_attention_layers"):
            # One of the blocks without the second attention.
            transformer["dual_attention_layers"] = tuple(layer for layer in dual if layer < blocks - 1)
    configs = {part: SimpleNamespace(**values) for part, values in arguments.items()}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=not decoder.kind.startswith("SD3"), shift=3.0)
    return found(configs, scheduler.config, **options), arguments


def build(family: DecoderFamily, arguments: Mapping[str, Mapping[str, Any]], device: str = "meta") -> dict[str, Any]:
    """Components by their folders' names, on a device: what is trained and frozen in bf16, the codec in fp32."""
    with torch.device(device):
        parts = {name: kind(**arguments[name]).eval() for name, kind in family.components.items()}
    # Not the method of diffusers' classes, which warns of layers that a loader would keep in fp32.
    return {name: part if name == VAE else nn.Module.to(part, torch.bfloat16) for name, part in parts.items()}


# ------------------------------------------------------------ language models


def _qwen2_5(hidden: int, layers: int, heads: int, kv: int, inner: int, tied: bool, vocabulary: int) -> dict[str, Any]:
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner, "vocab_size": vocabulary}
    heads_and_more = {"num_attention_heads": heads, "num_key_value_heads": kv, "max_window_layers": layers}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": hidden}
    return {
        "class": "Qwen2_5_VLConfig",
        "text_config": {**text, **heads_and_more, "rope_parameters": rope, "tie_word_embeddings": tied},
        "vision_config": vision,
        "tie_word_embeddings": tied,
    }


def _qwen3_text(hidden: int, layers: int, heads: int, inner: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": inner,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
    }


def _qwen3_vl(large: bool, hidden: int, layers: int, heads: int, inner: int, tied: bool) -> dict[str, Any]:
    tower = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
    if not large:
        tower = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return {
        "class": "Qwen3VLConfig",
        "text_config": {**_qwen3_text(hidden, layers, heads, inner, tied), "rope_parameters": rope},
        "vision_config": {**tower, "out_hidden_size": hidden},
        "tie_word_embeddings": tied,
    }


#: Hub id -> class of configuration and its arguments.
LANGUAGE_MODELS: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5(2048, 36, 16, 2, 11008, True, 151936),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5(3584, 28, 28, 4, 18944, False, 152064),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl(False, 2048, 28, 16, 6144, True),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl(False, 2560, 36, 32, 9728, True),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl(True, 4096, 36, 32, 12288, False),
    "Qwen/Qwen3-4B": {"class": "Qwen3Config", **_qwen3_text(2560, 36, 32, 9728, True)},
    "Qwen/Qwen3-8B": {"class": "Qwen3Config", **_qwen3_text(4096, 36, 32, 12288, False)},
    # The class's defaults.
    "google/gemma-2-2b-it": {
        "class": "Gemma2Config",
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
    },
}


#: Hub id of a network of rewards -> class of configuration and its arguments.
VISION_MODELS: Mapping[str, Mapping[str, Any]] = {
    "openai/clip-vit-large-patch14": {
        "class": "CLIPVisionConfig",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "facebook/dinov2-large": {
        "class": "Dinov2Config",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 518,
        "patch_size": 14,
    },
    "facebook/dinov3-vitl16-pretrain-lvd1689m": {
        "class": "DINOv3ViTConfig",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "num_register_tokens": 4,
    },
    "google/siglip2-so400m-patch14-384": {
        "class": "SiglipVisionConfig",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}


def vision_config(hub_id: str) -> Any:
    """Configuration of a published network of rewards; None where it is not known here."""
    import transformers

    if hub_id not in VISION_MODELS:
        return None
    arguments = dict(VISION_MODELS[hub_id])
    return getattr(transformers, arguments.pop("class"))(**arguments)


def language_config(hub_id: str, key: str, layers: int | None = None) -> Any:
    """Configuration of a published language model, with its vision tower where it has one.

    Args:
        hub_id: of :data:`LANGUAGE_MODELS`.
        key: of the configuration that names it, for the error.
        layers: of the language model, where not all are wanted.

    Raises:
        ConfigError: its architecture is not known here.
    """
    import transformers

    if hub_id not in LANGUAGE_MODELS:
        known = ", ".join(sorted(LANGUAGE_MODELS))
        raise ConfigError(key, f"the architecture of {hub_id!r} is not known: give a folder of it, or one of {known}")
    arguments = dict(LANGUAGE_MODELS[hub_id])
    kind = getattr(transformers, arguments.pop("class"))
    if layers is not None:
        holder = dict(arguments.get("text_config", arguments), num_hidden_layers=layers)
        arguments = {**arguments, "text_config": holder} if "text_config" in arguments else holder
    return kind(**arguments)


def build_language_model(config: Any, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A model of a configuration with its head, and its vision tower where it has one; frozen, in evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device(device):
        model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    built: nn.Module = model.eval().requires_grad_(False)
    return built
