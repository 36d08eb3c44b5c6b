# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the parts of workers that train the decoder from the composed configuration."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from omegaconf import DictConfig, OmegaConf
from verl.trainer.config import CheckpointConfig
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig

from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.decoder import latent_shape
from verl_uae.chain.draw import Painter, PainterSettings
from verl_uae.checkpoints.load import load_model, load_scheduler
from verl_uae.checkpoints.names import VAE
from verl_uae.engines.decoder_module import DecoderModelConfig
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward.scorer import build_scorer
from verl_uae.settings import DTYPES as DTYPE_NAMES
from verl_uae.stages.common.captions import FrozenCaptioner

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}

#: Weight copy of the engine: the average.
EMA = "ema"


def training_worker_config(
    config: DictConfig,
    total_steps: int,
    model_type: str,
    *,
    shadows: list[str],
    keep_reference: bool = False,
    train_transformer: bool = True,
) -> TrainingWorkerConfig:
    """What verl's training worker needs to train the decoder.

    Args:
        config: the whole composed configuration.
        total_steps: steps of the run that train the decoder, for the learning-rate schedule.
        model_type: selects the engine.
        shadows: weight copies to keep.
        keep_reference: keep the weights before training too.
        train_transformer: train the MM-DiT as ``uae.train.lora`` says.
    """
    train = config.uae.train
    model = DecoderModelConfig(
        path=config.uae.decoder.path,
        model_type=model_type,
        lora_rank=train.lora.rank if train_transformer else 0,
        lora_alpha=train.lora.alpha,
        lora_target_modules=list(train.lora.target_modules),
        lora_seed=config.uae.seed,
        train_transformer=train_transformer,
        train_projector=train.train_projector,
        enable_gradient_checkpointing=train.gradient_checkpointing,
        shadows=shadows,
        keep_reference=keep_reference,
    )
    contents = [name for name in train.save_contents if name != "diffusers"]
    optim = OmegaConf.merge(train.optim, {"total_training_steps": total_steps})
    return TrainingWorkerConfig(
        model_type=model_type,
        model_config=model,
        engine_config=omega_conf_to_dataclass(train.fsdp_config),
        optimizer_config=omega_conf_to_dataclass(optim),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )


def decoder_shift(config: DictConfig) -> float:
    """Timestep shift: of the configuration, else of the decoder's scheduler."""
    if config.uae.decoder.shift is not None:
        return float(config.uae.decoder.shift)
    return float(load_scheduler(config.uae.decoder.path).config.shift)


def evaluation_plan(config: DictConfig, shift: float) -> SamplingPlan:
    """How reconstructions are drawn for rewards of the captioner and in validation: the ODE sampler of ``uae.decoder``.

    Args:
        config: the whole composed configuration.
        shift: timestep shift, see :func:`decoder_shift`.
    """
    decoder = config.uae.decoder
    return SamplingPlan.ode(sigma_schedule(decoder.num_steps, shift), decoder.guidance)


def load_conditioner(config: DictConfig, device: str | torch.device) -> Conditioner:
    """The conditioner of ``uae.conditioner``."""
    settings = config.uae.conditioner
    dtype = DTYPES[settings.dtype]
    return Conditioner.from_pretrained(
        settings.path, length=settings.length, role=settings.role, dtype=dtype, device=device
    )


def painter_settings(config: DictConfig, vae: Any, transformer: Any, micro_batch_size: int) -> PainterSettings:
    """What ``uae.decoder`` says of drawing.

    Args:
        config: the whole composed configuration.
        vae: config of the decoder's VAE.
        transformer: config of the decoder's transformer.
        micro_batch_size: pictures denoised together.
    """
    decoder = config.uae.decoder
    return PainterSettings(
        height=decoder.height,
        width=decoder.width,
        latent_shape=latent_shape(vae, transformer, decoder.height, decoder.width),
        negative_prompt=decoder.negative_prompt,
        micro_batch_size=micro_batch_size,
        score_batch_size=decoder.batch_size,
        vae_batch_size=decoder.vae_batch_size,
    )


def build_painter(
    config: DictConfig,
    conditions: ConditionCache,
    vae: AutoencoderKL,
    transformer: Any,
    device: str | torch.device,
    *,
    micro_batch_size: int,
    loaded_on: str | torch.device | None = None,
) -> Painter:
    """What draws and scores, but for the velocity model.

    Args:
        config: the whole composed configuration.
        conditions: of captions.
        vae: of the decoder.
        transformer: config of the decoder's transformer.
        device: where pictures are drawn.
        micro_batch_size: pictures denoised together.
        loaded_on: where reward models are put before they are moved; default: ``device``.
    """
    settings = painter_settings(config, vae.config, transformer, micro_batch_size)
    return Painter(conditions, vae.requires_grad_(False), build_scorer(config, loaded_on or device), settings, device)


def build_training_painter(
    config: DictConfig, captions: FrozenCaptioner | None, transformer: Any, device: str
) -> Painter:
    """:func:`build_painter` of a rank that trains the decoder.

    Args:
        config: the whole composed configuration.
        captions: a captioner whose language model may serve as conditioner too.
        transformer: config of the trained transformer.
        device: where pictures are drawn.
    """
    uae = config.uae
    same = captions is not None and uae.conditioner.path == config.actor_rollout_ref.model.path
    if captions is not None and same and uae.conditioner.dtype == uae.u4g.captions.dtype:
        conditioner = captions.shared_conditioner(length=uae.conditioner.length, role=uae.conditioner.role)
    else:
        conditioner = load_conditioner(config, device)
    conditions = ConditionCache(conditioner, uae.conditioner.cache_size)
    vae = load_model(AutoencoderKL, uae.decoder.path, subfolder=VAE).to(device)
    micro_batch_size = uae.train.micro_batch_size
    return build_painter(config, conditions, vae, transformer, device, micro_batch_size=micro_batch_size)
