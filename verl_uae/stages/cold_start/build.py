# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the parts of the cold start from the composed configuration."""

from __future__ import annotations

import dataclasses

import torch
from omegaconf import DictConfig, OmegaConf
from verl.trainer.config import CheckpointConfig
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry

from verl_uae.checkpoints.load import load_config, load_processor
from verl_uae.engines.supervised import SUPERVISED_TYPE
from verl_uae.errors import ConfigError
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward.registry import get_reward
from verl_uae.reward.terms.features import FeatureTerm
from verl_uae.stages.cold_start.encoder import ENCODER_TYPE, EncoderEngine, EncoderModelConfig
from verl_uae.stages.cold_start.inputs import CaptionBatcher
from verl_uae.stages.cold_start.loss import ReconstructionSettings
from verl_uae.stages.common.build import EMA, training_worker_config
from verl_uae.stages.common.captions import PromptSettings, PromptTokens


def decoder_worker_config(config: DictConfig, total_steps: int) -> TrainingWorkerConfig:
    """What verl's training worker needs for the decoder's part."""
    trained = config.uae.cold_start.train_decoder
    shadows = [EMA] if config.uae.train.ema.decay > 0 and (trained or config.uae.train.train_projector) else []
    return training_worker_config(config, total_steps, SUPERVISED_TYPE, shadows=shadows, train_transformer=trained)


def build_encoder_engine(config: DictConfig, total_steps: int) -> EncoderEngine | None:
    """The encoder's engine, not initialised; None where frozen text-only states are all that is asked of it."""
    cold_start = config.uae.cold_start
    encoder = cold_start.encoder
    if not encoder.train and cold_start.states == "text_only":
        return None
    model = EncoderModelConfig(
        path=config.actor_rollout_ref.model.path,
        lora_rank=encoder.lora.rank if encoder.train else 0,
        lora_alpha=encoder.lora.alpha,
        lora_target_modules=list(encoder.lora.target_modules),
        lora_seed=config.uae.seed,
        enable_gradient_checkpointing=encoder.gradient_checkpointing,
    )
    engine_config = omega_conf_to_dataclass(encoder.fsdp_config)
    contents = [name for name in config.uae.train.save_contents if name != "diffusers"]
    return EngineRegistry.new(
        model_type=ENCODER_TYPE,
        backend=engine_config.strategy,
        model_config=model,
        engine_config=dataclasses.replace(engine_config, forward_only=not encoder.train),
        optimizer_config=omega_conf_to_dataclass(OmegaConf.merge(encoder.optim, {"total_training_steps": total_steps})),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )


def build_features(config: DictConfig, device: str) -> FeatureTerm:
    """The frozen feature network of the semantic term."""
    cold_start = config.uae.cold_start
    params = OmegaConf.to_container(cold_start.backbone_params, resolve=True)
    assert isinstance(params, dict)
    term = get_reward(cold_start.backbone, "uae.cold_start.backbone")(**{str(k): v for k, v in params.items()})
    if not isinstance(term, FeatureTerm):
        raise ConfigError("uae.cold_start.backbone", f"{cold_start.backbone} has no features to compare")
    term.to(torch.device(device))
    return term


def build_caption_batcher(config: DictConfig, device: str) -> CaptionBatcher:
    """Prompts as the captioning stages build them."""
    path = config.actor_rollout_ref.model.path
    processor, model = load_processor(path), load_config(path)
    settings = PromptSettings(
        config.actor_rollout_ref.model.get("custom_chat_template"),
        dict(config.data.get("apply_chat_template_kwargs") or {}),
        dict(config.data.get("mm_processor_kwargs") or {}),
    )
    tokens = PromptTokens(processor, model.model_type, settings)
    return CaptionBatcher(tokens, processor, model, config.data.max_response_length, device)


def reconstruction_settings(config: DictConfig, shift: float) -> ReconstructionSettings:
    """``uae.cold_start`` as the loss takes it."""
    cold_start = config.uae.cold_start
    return ReconstructionSettings(
        sigmas=sigma_schedule(cold_start.num_steps, shift),
        guidance=cold_start.guidance,
        gradient_steps=cold_start.gradient_steps,
        semantic_weight=cold_start.semantic_weight,
        caption_weight=cold_start.caption_weight if cold_start.encoder.train else 0.0,
        in_context=cold_start.states == "in_context",
        vae_batch_size=config.uae.decoder.vae_batch_size,
    )
