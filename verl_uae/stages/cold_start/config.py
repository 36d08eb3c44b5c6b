# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.cold_start``. Sources: "Paper" is arXiv 2509.09666, "code" its released inference code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.chain.config import MOST_STEPS
from verl_uae.errors import ConfigError
from verl_uae.settings import check_choices, key
from verl_uae.stages.common.config import FULL_PRECISION, STRATEGIES


@dataclass
class CaptionerLoraConfig:
    """``uae.cold_start.captioner.lora``: low-rank adapters of the language model."""

    rank: int = key(32, at_least=0)
    """Rank; 0 trains all weights of the language model. Code: 32."""

    alpha: int = key(64, at_least=1)
    """Scale, at least 1. Code: 64."""

    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Endings of module names that get an adapter. Code: all linear layers."""


@dataclass
class CaptionerTrainingConfig:
    """``uae.cold_start.captioner``: the language model of the captioner; its vision tower is frozen."""

    train: bool = True
    """Train the language model. Paper: captioner and decoder."""

    lora: CaptionerLoraConfig = field(default_factory=CaptionerLoraConfig)

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""

    fsdp_config: dict[str, Any] = field(default_factory=dict)
    """verl's FSDP engine settings (verl.workers.config.FSDPEngineConfig)."""

    optim: dict[str, Any] = field(default_factory=dict)
    """verl's optimiser settings (verl.workers.config.FSDPOptimizerConfig)."""


@dataclass
class ColdStartConfig:
    """``uae.cold_start``: semantic reconstruction through a differentiable sampler."""

    states: str = key("text_only", choices=("text_only", "in_context"))
    """What the decoder is conditioned on. text_only: the caption re-encoded alone, as in RL and in use. in_context: the
    states of the caption's tokens after the image, as in the released code; they carry pixels past the text."""

    train_decoder: bool = True
    """Train the MM-DiT as ``uae.train.lora`` says. Paper: captioner and decoder."""

    num_steps: int = key(10, at_least=1, at_most=MOST_STEPS)
    """Euler steps of the sampler, at least 1. Code: 10."""

    guidance: float = key(5.0, at_least=1)
    """Classifier-free guidance in the sampler, at least 1; 1 is off and halves the cost. Code: 5.0."""

    gradient_steps: int | None = None
    """The gradient goes through the last so many steps, at least 1; null is all of them."""

    kept_steps: int | None = key(0, at_least=0)
    """Activations of the last so many steps are kept from the path of the sampler to the way back, at least 0 and at
    most as many as the gradient goes through; the others are computed a second time there. No number changes, but
    where blocks are compiled in its last bits: with and without a gradient they are two programs, which round
    differently. FSDP2 only. null: the training command decides before Ray starts, and its log says why: the most with
    which the estimated peak stays below the usable memory of the GPU that it finds, and all on a CPU. Our choice."""

    backbone: str = key("clip", choices=("clip", "dinov2", "dinov3", "siglip2", "efficientnet_lite0"))
    """Feature term whose cosine is the semantic similarity: clip, dinov2, dinov3, siglip2 or efficientnet_lite0.
    Code: CLIP ViT-L/14."""

    backbone_params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that term."""

    semantic_weight: float = key(1.0, at_least=0)
    """Weight of 1 - cosine, at least 0. Paper: the only term."""

    caption_weight: float = key(1.0, at_least=0)
    """Weight of the cross-entropy of the caption given the image, mean over its tokens, at least 0: what teaches the
    captioner to write such captions, since the semantic term sees only the states of given ones. Our choice."""

    captioner: CaptionerTrainingConfig = field(default_factory=CaptionerTrainingConfig)


def gone_back(config: DictConfig) -> int:
    """Steps that the gradient goes through."""
    cold_start = config.uae.cold_start
    return int(cold_start.num_steps if cold_start.gradient_steps is None else cold_start.gradient_steps)


def most_kept(config: DictConfig) -> int:
    """Steps whose activations can be kept.

    FSDP1 readies a weight for summing its gradient in its first forward pass, and for one backward pass.
    """
    return 0 if config.uae.train.fsdp_config.strategy == "fsdp" else gone_back(config)


def validate(config: DictConfig) -> None:
    """Check what can be checked without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    cold_start = config.uae.cold_start
    steps = cold_start.gradient_steps
    if steps is not None and not 1 <= steps <= cold_start.num_steps:
        raise ConfigError(
            "uae.cold_start.gradient_steps", f"must lie in [1, {cold_start.num_steps}] or be null, got {steps}"
        )
    kept, back = cold_start.kept_steps or 0, gone_back(config)
    if kept > back:
        raise ConfigError(
            "uae.cold_start.kept_steps", f"got {kept}, and the gradient goes through {back} steps; use at most {back}"
        )
    if kept > most_kept(config):
        raise ConfigError(
            "uae.cold_start.kept_steps",
            f"got {kept}, and fsdp wants the backward pass of a step before the next forward pass; use 0, or "
            "uae.train.fsdp_config.strategy=fsdp2",
        )
    decoder = cold_start.train_decoder or config.uae.train.train_projector
    if not decoder and not cold_start.captioner.train:
        raise ConfigError("uae.cold_start.captioner.train", "nothing trains: neither captioner, projector nor MM-DiT")
    if cold_start.semantic_weight == 0 and (decoder or cold_start.caption_weight == 0):
        raise ConfigError("uae.cold_start.semantic_weight", "is 0: the decoder would learn nothing")
    if cold_start.captioner.train and config.uae.conditioner.path != config.actor_rollout_ref.model.path:
        raise ConfigError(
            "uae.conditioner.path", "must be actor_rollout_ref.model.path: the trained captioner conditions"
        )
    engine = cold_start.captioner.fsdp_config
    check_choices(config, {"uae.cold_start.captioner.fsdp_config.strategy": STRATEGIES})
    if engine.ulysses_sequence_parallel_size != 1:
        raise ConfigError(
            "uae.cold_start.captioner.fsdp_config.ulysses_sequence_parallel_size",
            "every rank has pairs of its own; use 1",
        )
    captioner = cold_start.captioner
    if captioner.train and captioner.lora.rank == 0 and engine.get("model_dtype") not in FULL_PRECISION:
        raise ConfigError(
            "uae.cold_start.captioner.fsdp_config.model_dtype",
            f"{engine.model_dtype}: all weights are trained in it, and small updates are rounded away; use fp32, or "
            "train adapters (uae.cold_start.captioner.lora.rank above 0), which are held in fp32",
        )
    # Imported here: the schema is needed in places that must not pay for torch.
    from verl_uae.reward.registry import get_reward

    params: Any = OmegaConf.to_container(cold_start.backbone_params, resolve=True)
    get_reward(cold_start.backbone).check_params(params, "uae.cold_start.backbone_params")
    if config.uae.pretrain.cache_dir is not None:
        raise ConfigError("uae.pretrain.cache_dir", "conditions of a trained captioner change; use null in this stage")
