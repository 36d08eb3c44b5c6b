# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Models of known architecture with random weights: decoder policies and the language models that condition them.

Shape legend: L text positions, E language-model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.names import CONDITIONER, TRANSFORMER, VAE
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.families import family_of_modules
from verl_uae.families.published import DECODERS, LANGUAGE_MODELS
from verl_uae.families.sd3 import SD3, Projector
from verl_uae.scenes.tokenizer import build_tokenizer

#: Pixels per latent, a side.
VAE_FACTOR = 8


@dataclass(frozen=True, slots=True)
class LanguageSize:
    """A decoder-only language model in Qwen2's layout."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 64


@dataclass(frozen=True, slots=True)
class Size:
    """A decoder policy."""

    layers: int
    heads: int
    head_dim: int
    patch: int
    latent_channels: int
    joint: int
    """Width of the text stream at the transformer's door."""
    pooled: int
    positions: int
    """Side of the table of positions, in patches."""
    projector: int
    """Width between the projector's two layers."""
    pixels: int
    """Side of the picture."""
    text_tokens: int
    """L, fixed length of the condition, template included."""
    language: LanguageSize
    dual: tuple[int, ...] = ()
    lora_rank: int = 32
    """0 trains all weights."""
    train_projector: bool = False
    micro: int = 8
    """Samples per forward pass."""
    checkpointing: bool = False


def _published(name: str, **own: Any) -> Size:
    """SD3.5 with Qwen2.5-VL-3B's language model."""
    transformer, projector = (DECODERS[name].changes[part] for part in (TRANSFORMER, CONDITIONER))
    text = LANGUAGE_MODELS[DECODERS[name].language_model]["text_config"]
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return Size(
        layers=transformer["num_layers"],
        heads=transformer["num_attention_heads"],
        head_dim=transformer["attention_head_dim"],
        patch=transformer["patch_size"],
        latent_channels=transformer["in_channels"],
        joint=transformer["joint_attention_dim"],
        pooled=transformer["pooled_projection_dim"],
        positions=transformer["pos_embed_max_size"],
        projector=projector["hidden_dim"],
        pixels=512,
        text_tokens=333,
        language=LanguageSize(*(text[key] for key in keys), text["vocab_size"]),
        dual=transformer.get("dual_attention_layers", ()),
        **own,
    )


SIZES = {
    # The decoder of the built-in scenes, trained as in its preset.
    "tiny": Size(
        2, 4, 24, 1, 30, 96, 16, 4, 192, 32, 20, LanguageSize(96, 2, 4, 2, 288), lora_rank=0, train_projector=True
    ),
    # Large enough that matrix products outweigh Python on one CPU thread; its language model costs about as large a
    # share of one forward pass as Qwen2.5-VL-3B's does of SD3.5-large's.
    "small": Size(4, 4, 64, 2, 16, 256, 64, 16, 512, 128, 32, LanguageSize(256, 4, 4, 2, 512)),
    "sd35_medium": _published("sd35_medium"),
    "sd35_large": _published("sd35_large", checkpointing=True),
}


def transformer_config(size: Size) -> dict[str, Any]:
    """Arguments of diffusers' SD3Transformer2DModel."""
    return {
        "sample_size": size.pixels // VAE_FACTOR,
        "patch_size": size.patch,
        "in_channels": size.latent_channels,
        "out_channels": size.latent_channels,
        "num_layers": size.layers,
        "num_attention_heads": size.heads,
        "attention_head_dim": size.head_dim,
        "joint_attention_dim": size.joint,
        "caption_projection_dim": size.heads * size.head_dim,
        "pooled_projection_dim": size.pooled,
        "pos_embed_max_size": size.positions,
        "dual_attention_layers": size.dual,
        "qk_norm": "rms_norm",
    }


def build_policy(size: Size, seed: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DecoderModule:
    """Projector and transformer with the libraries' random weights, made on the device; frozen, without adapters."""
    with _seeded(seed, device, dtype):
        transformer = SD3Transformer2DModel(**transformer_config(size))
        projector = Projector(size.language.hidden, size.projector, size.joint, size.pooled)
        projector.pooled.normal_()
    if size.checkpointing:
        transformer.enable_gradient_checkpointing()
    # The table of positions is made in fp32, whatever the default.
    modules = {TRANSFORMER: transformer, CONDITIONER: projector}
    return DecoderModule(family_of_modules(modules, {}), modules).to(device, dtype).requires_grad_(False).eval()


def build_vae(device: str = "cpu", seed: int = 0) -> AutoencoderKL:
    """SD3.5's VAE in fp32 with random weights, frozen."""
    with _seeded(seed, device, torch.float32):
        vae = AutoencoderKL(**DECODERS["sd35_large"].changes[VAE])
    return vae.eval().requires_grad_(False)


def save_decoder(module: DecoderModule, size: Size, folder: str) -> None:
    """Write a decoder folder, with a VAE that is never run."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=size.latent_channels,
        norm_num_groups=4,
    )
    Decoder.of({TRANSFORMER: module.transformer, VAE: vae, CONDITIONER: module.projector}, {}).save_pretrained(folder)


def build_conditioner(size: Size, seed: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Conditioner:
    """A frozen language model with random weights behind the tokenizer of the scenes."""
    from transformers import Qwen2Config, Qwen2Model

    language = size.language
    config = Qwen2Config(
        vocab_size=language.vocabulary,
        hidden_size=language.hidden,
        intermediate_size=language.intermediate,
        num_hidden_layers=language.layers,
        num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads,
    )
    with _seeded(seed + 1, device, dtype):
        model = Qwen2Model(config)
    family = SD3({}, {}, length=size.text_tokens)
    conditioner = Conditioner(model, build_tokenizer(), family)
    return conditioner.to(device, dtype).eval().requires_grad_(False)


@contextmanager
def _seeded(seed: int, device: str, dtype: torch.dtype) -> Iterator[None]:
    """Weights are drawn from a seed, on a device and in a dtype; both process-wide settings are put back."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
