# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the parts of workers that train the decoder from the composed configuration."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from verl.trainer.config import CheckpointConfig
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig

from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.draw import Painter, PainterSettings
from verl_uae.chain.vae import lower_precision
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.names import VAE
from verl_uae.engines.decoder_module import DecoderModelConfig
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_of
from verl_uae.families.family import DecoderFamily
from verl_uae.flow.plan import SamplingPlan
from verl_uae.reward.scorer import build_scorer
from verl_uae.settings import DTYPES as DTYPE_NAMES
from verl_uae.settings import REWARDED
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
        lora_target_modules=None if train.lora.target_modules is None else list(train.lora.target_modules),
        lora_seed=config.uae.seed,
        train_transformer=train_transformer,
        train_projector=train.train_projector,
        enable_gradient_checkpointing=train.gradient_checkpointing,
        compile_blocks=config.uae.decoder.compile,
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


def decoder_family(config: DictConfig) -> DecoderFamily:
    """What kind of decoder ``uae.decoder`` is, with the condition and the timestep shift of the configuration."""
    uae = config.uae
    shift = None if uae.decoder.shift is None else float(uae.decoder.shift)
    return family_of(uae.decoder.path, length=uae.conditioner.length, role=uae.conditioner.role, shift=shift)


def evaluation_plan(config: DictConfig, family: DecoderFamily) -> SamplingPlan:
    """How reconstructions are drawn for rewards of the captioner and in validation: the ODE sampler of ``uae.decoder``.

    Args:
        config: the whole composed configuration.
        family: of :func:`decoder_family`.
    """
    decoder = config.uae.decoder
    return SamplingPlan.ode(family.sigmas(decoder.num_steps, decoder.height, decoder.width), decoder.guidance)


def load_conditioner(config: DictConfig, family: DecoderFamily, device: str | torch.device) -> Conditioner:
    """The conditioner of ``uae.conditioner`` for a decoder of that family.

    Raises:
        ConfigError: the decoder takes states of another language model.
    """
    settings = config.uae.conditioner
    conditioner = Conditioner.from_pretrained(settings.path, family, dtype=DTYPES[settings.dtype], device=device)
    try:
        family.check(config.uae.decoder.path, conditioner.width, conditioner.layers, conditioner.kind)
    except CheckpointError as error:
        raise ConfigError("uae.conditioner.path", f"{settings.path} does not fit: {error}") from error
    return conditioner


def painter_settings(config: DictConfig, family: DecoderFamily, micro_batch_size: int) -> PainterSettings:
    """What ``uae.decoder`` says of drawing.

    Args:
        config: the whole composed configuration.
        family: of the decoder.
        micro_batch_size: pictures denoised together.
    """
    decoder = config.uae.decoder
    return PainterSettings(
        height=decoder.height,
        width=decoder.width,
        latent_shape=family.latent_shape(decoder.height, decoder.width),
        negative_prompt=decoder.negative_prompt,
        micro_batch_size=micro_batch_size,
        score_batch_size=decoder.batch_size,
        vae_batch_size=decoder.vae_batch_size,
        overlap=decoder.overlap,
    )


def build_painter(
    config: DictConfig,
    conditions: ConditionCache,
    vae: Any,
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
        device: where pictures are drawn.
        micro_batch_size: pictures denoised together.
        loaded_on: where reward models are put before they are moved; default: ``device``.
    """
    family = conditions.conditioner.family
    settings = painter_settings(config, family, micro_batch_size)
    vae.requires_grad_(False)
    if config.uae.stage in REWARDED:
        lower_precision(vae, family, DTYPES[config.uae.decoder.vae_dtype], (settings.height, settings.width), device)
    return Painter(conditions, vae, build_scorer(config, loaded_on or device), settings, device)


def build_training_painter(
    config: DictConfig, captions: FrozenCaptioner | None, family: DecoderFamily, device: str
) -> Painter:
    """:func:`build_painter` of a rank that trains the decoder.

    Args:
        config: the whole composed configuration.
        captions: a captioner whose language model may serve as conditioner too.
        family: of the trained decoder.
        device: where pictures are drawn.
    """
    uae = config.uae
    same = captions is not None and uae.conditioner.path == config.actor_rollout_ref.model.path
    if captions is not None and same and uae.conditioner.dtype == uae.u4g.captions.dtype:
        conditioner = captions.shared_conditioner(family)
    else:
        conditioner = load_conditioner(config, family, device)
    conditions = ConditionCache(conditioner, uae.conditioner.cache_size)
    vae = load_model(family.components[VAE], uae.decoder.path, subfolder=VAE).to(device)
    micro_batch_size = uae.train.micro_batch_size
    return build_painter(config, conditions, vae, device, micro_batch_size=micro_batch_size)
