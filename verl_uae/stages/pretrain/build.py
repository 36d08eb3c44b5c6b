# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the parts of the supervised stages from the composed configuration."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from verl.workers.config import TrainingWorkerConfig

from verl_uae.chain.draw import Painter
from verl_uae.checkpoints.names import VAE
from verl_uae.checkpoints.source import local_folder
from verl_uae.data.cache import TensorCache, condition_fingerprint, latent_fingerprint
from verl_uae.data.rows import CheckSettings
from verl_uae.engines.supervised import SUPERVISED_TYPE
from verl_uae.flow.matching import NoiseDensity
from verl_uae.stages.common.build import DTYPES, EMA, training_worker_config
from verl_uae.stages.pretrain.pair_encoder import PairEncoder


def supervised_worker_config(config: DictConfig, total_steps: int) -> TrainingWorkerConfig:
    """What verl's training worker needs to train the decoder with a supervised loss."""
    shadows = [EMA] if config.uae.train.ema.decay > 0 else []
    return training_worker_config(config, total_steps, SUPERVISED_TYPE, shadows=shadows)


def density(config: DictConfig, shift: float) -> NoiseDensity:
    """The trained noise levels.

    Args:
        config: the whole composed configuration.
        shift: where ``uae.pretrain.shift`` is null.
    """
    settings: Any = OmegaConf.to_container(config.uae.pretrain.density, resolve=True)
    own = config.uae.pretrain.shift
    return NoiseDensity(shift=shift if own is None else float(own), **settings)


def build_pair_encoder(config: DictConfig, painter: Painter) -> PairEncoder:
    """VAE, conditioner and caches of a rank.

    Args:
        config: the whole composed configuration.
        painter: holds VAE and conditioner.
    """
    uae = config.uae
    latents = states = None
    if uae.pretrain.cache_dir is not None:
        vae = local_folder(uae.decoder.path, parts=[VAE]) / VAE
        latents = TensorCache(f"{uae.pretrain.cache_dir}/latents", latent_fingerprint(vae, torch.float32))
        made_by = condition_fingerprint(
            local_folder(uae.conditioner.path),
            DTYPES[uae.conditioner.dtype],
            length=uae.conditioner.length,
            role=uae.conditioner.role,
        )
        states = TensorCache(f"{uae.pretrain.cache_dir}/conditions", made_by)
    limits = CheckSettings.from_config(config.data).image_limits
    return PairEncoder(
        painter.vae,
        painter.conditions,
        latent_cache=latents,
        condition_cache=states,
        limits=limits,
        batch_size=uae.decoder.vae_batch_size,
    )
