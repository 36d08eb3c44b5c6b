# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Decoders and captioners of real width and few layers, on ``meta``.

Shape legend: N samples of a rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from benchmarks.sizes import SIZES, LanguageSize, Size, build_conditioner, build_policy, build_vae
from verl_uae.chain.decoder import Decoder
from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.lora import add_lora
from verl_uae.engines.shadow import WeightShadow
from verl_uae.engines.supervised import SupervisedEngine
from verl_uae.families import family_of_modules
from verl_uae.families.family import DecoderFamily
from verl_uae.reward.scorer import RewardScorer

BLOCKS = 3
TEXT_TOKENS = 640

#: The language models of Qwen2.5-VL 3B and 7B, one layer of them, by width.
LANGUAGES = {
    2048: LanguageSize(2048, 1, 16, 2, 11008, 151936),
    3584: LanguageSize(3584, 1, 28, 4, 18944, 152064),
}

#: Two of Medium's three blocks have the second attention that the first thirteen of its 24 have.
_DUAL = {"sd35_large": (), "sd35_medium": (0, 1)}

DECODERS = sorted(_DUAL)


def size_of(decoder: str, hidden: int) -> Size:
    """A decoder behind a captioner of this width, three blocks of it."""
    return dataclasses.replace(
        SIZES[decoder], layers=BLOCKS, dual=_DUAL[decoder], text_tokens=TEXT_TOKENS, language=LANGUAGES[hidden]
    )


def policy_module(size: Size, *, dtype: torch.dtype = torch.bfloat16, lora: bool = False) -> DecoderModule:
    """What is trained: adapters of rank 32, or all of it."""
    module = build_policy(dataclasses.replace(size, checkpointing=False), 0, device="meta", dtype=dtype)
    if lora:
        add_lora(module, rank=size.lora_rank, alpha=64, target_modules=module.family.lora_targets)
        return module
    return module.requires_grad_(True)


def conditioner(size: Size) -> Any:
    """One layer of the language model, in bf16."""
    return build_conditioner(size, 0, device="meta", dtype=torch.bfloat16)


def vae() -> AutoencoderKL:
    """SD3.5's, whole, in fp32."""
    return build_vae("meta")


def save_clip(folder: Path) -> str:
    """CLIP ViT-L/14's picture tower, two layers of it."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return str(folder)


def scorer(clip: str, *, source_cache_bytes: int = 1 << 20) -> RewardScorer:
    """Similarity by CLIP, and two terms that are only watched."""
    terms = [("clip", 1.0, {"model": clip})]
    held_out = [("ssim", {}), ("pixel", {})]
    built = RewardScorer(terms, held_out=held_out, source_cache_bytes=source_cache_bytes, timeout_s=300.0)
    built.to("meta")
    return built


def family(module: DecoderModule, codec: AutoencoderKL) -> DecoderFamily:
    """What kind of decoder they are."""
    modules = {"transformer": module.transformer, "vae": codec, "conditioner": module.projector}
    return family_of_modules(modules, {"shift": 3.0}, length=TEXT_TOKENS)


def decoder(size: Size) -> Decoder:
    """The frozen decoder of G4U."""
    module, codec = policy_module(size), vae()
    modules = {"transformer": module.transformer, "vae": codec, "conditioner": module.projector}
    return Decoder(family(module, codec), modules).eval().requires_grad_(False)


def photograph() -> Image.Image:
    """A source picture."""
    return Image.new("RGB", (512, 512), (9, 200, 30))


class _Unsharded:
    """verl's engine without FSDP, optimiser and offload, which need a device."""

    module: Any
    optimizer: Any

    @contextmanager
    def eval_mode(self, **_: Any) -> Iterator[None]:
        self.module.eval()
        yield

    @contextmanager
    def train_mode(self, **_: Any) -> Iterator[None]:
        self.module.train()
        yield

    def optimizer_zero_grad(self) -> None:
        self.module.zero_grad()

    def optimizer_step(self) -> float:
        return 1.0

    def _gradient_sync_context(self, *, is_last_micro_batch: bool) -> Any:
        return torch.enable_grad()


class PolicyEngine(_Unsharded, DecoderEngine):
    """:class:`DecoderEngine` around a module on ``meta``."""


class PairEngine(_Unsharded, SupervisedEngine):
    """:class:`SupervisedEngine` around a module on ``meta``."""


def engine(kind: type, module: nn.Module, *, shadows: tuple[str, ...] = ()) -> Any:
    """An initialised engine of one rank."""
    lora = any("lora_" in name for name, _ in module.named_parameters())
    made = object.__new__(kind)
    made.module, made.scaler, made._has_learned, made._is_lora = module, None, True, lora
    made.ulysses_device_mesh, made.ulysses_sequence_parallel_size = None, 1
    made.model_config = SimpleNamespace(train_projector=not lora, keep_reference=True, lora_rank=32 if lora else 0)
    made.engine_config = SimpleNamespace(strategy="fsdp2")
    made.shadows = {name: WeightShadow(module) for name in shadows}
    return made
