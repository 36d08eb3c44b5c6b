# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Typed schema of ``uae.pretrain`` and ``uae.cold_start``: the supervised stages before RL.

What of the decoder is trained, its engine, its optimiser and its averaged weights are those of ``uae.policy`` (lora,
train_projector, gradient_checkpointing, micro_batch_size, ema, fsdp_config, optim, save_contents). Sources: "Paper" is
arXiv 2509.09666, "code" its released inference code, "SD3" 2403.03206.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DensityConfig:
    """``uae.pretrain.density``: which noise levels are trained."""

    name: str = "logit_normal"
    """logit_normal, mode or uniform: how levels are drawn. cosmap or sigma_sqrt: drawn uniformly and weighted. SD3:
    logit_normal."""

    logit_mean: float = 0.0
    """Mean of the logit of a level; above 0 trains more noise. SD3: 0."""

    logit_std: float = 1.0
    """Standard deviation of the logit, above 0. SD3: 1."""

    mode_scale: float = 1.29
    """Scale of ``mode``, in [-1, 1.752]. SD3: 1.29."""


@dataclass
class PretrainConfig:
    """``uae.pretrain``: flow matching of projector and MM-DiT on pairs of picture and long caption."""

    density: DensityConfig = field(default_factory=DensityConfig)

    condition_dropout: float = 0.1
    """Share of samples trained with ``null_caption``, in [0, 1), for classifier-free guidance. SD3 drops each of its
    three text encoders with 0.464, all three with 0.1."""

    null_caption: str = ""
    """Caption of dropped conditions; set ``uae.decoder.negative_prompt`` to the same for plain guidance."""

    buckets: bool = True
    """true: pictures keep their shape, in buckets around the area of uae.decoder.height. false: all are cut to
    uae.decoder.height x width."""

    bucket_step: int = 64
    """What both sides of a bucket are multiples of, pixels; a multiple of VAE factor times patch size. SDXL: 64."""

    max_aspect: float = 2.0
    """Largest ratio of the sides of a bucket, at least 1. Our choice."""

    cache_dir: str | None = None
    """Folder of latents and conditions on disk, shared by all ranks; null keeps none. Files are named by what made
    them, so one folder may serve many runs."""

    shift: float | None = None
    """Timestep shift of the trained levels, above 0; null takes uae.decoder.shift or the scheduler's."""

    validation_levels: int = 8
    """Noise levels, evenly spaced, at which the validation loss is taken, at least 1. Our choice."""


@dataclass
class EncoderLoraConfig:
    """``uae.cold_start.encoder.lora``: low-rank adapters of the language model."""

    rank: int = 32
    """Rank; 0 trains all weights of the language model. Code: 32."""

    alpha: int = 64
    """Scale, at least 1. Code: 64."""

    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Endings of module names that get an adapter. Code: all linear layers."""


@dataclass
class EncoderTrainingConfig:
    """``uae.cold_start.encoder``: the language model of the captioner; its vision tower is frozen."""

    train: bool = True
    """Train the language model. Paper: encoder and decoder."""

    lora: EncoderLoraConfig = field(default_factory=EncoderLoraConfig)

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""

    fsdp_config: dict[str, Any] = field(default_factory=dict)
    """verl's FSDP engine settings (verl.workers.config.FSDPEngineConfig)."""

    optim: dict[str, Any] = field(default_factory=dict)
    """verl's optimiser settings (verl.workers.config.FSDPOptimizerConfig)."""


@dataclass
class ColdStartConfig:
    """``uae.cold_start``: semantic reconstruction through a differentiable sampler."""

    states: str = "text_only"
    """What the decoder is conditioned on. text_only: the caption re-encoded alone, as in RL and in use. in_context: the
    states of the caption's tokens after the image, as in the released code; they carry pixels past the text."""

    train_decoder: bool = True
    """Train the MM-DiT as ``uae.policy.lora`` says. Paper: encoder and decoder."""

    num_steps: int = 10
    """Euler steps of the sampler, at least 1. Code: 10."""

    guidance: float = 5.0
    """Classifier-free guidance in the sampler, at least 1; 1 is off and halves the cost. Code: 5.0."""

    gradient_steps: int | None = None
    """The gradient goes through the last so many steps, at least 1; null is all of them."""

    backbone: str = "clip"
    """Feature term whose cosine is the semantic similarity: clip, dinov2, dinov3, siglip2 or efficientnet_lite0.
    Code: CLIP ViT-L/14."""

    backbone_params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that term."""

    semantic_weight: float = 1.0
    """Weight of 1 - cosine, at least 0. Paper: the only term."""

    caption_weight: float = 1.0
    """Weight of the cross-entropy of the caption given the image, mean over its tokens, at least 0: what teaches the
    encoder to write such captions, since the semantic term sees only the states of given ones. Our choice."""

    encoder: EncoderTrainingConfig = field(default_factory=EncoderTrainingConfig)
