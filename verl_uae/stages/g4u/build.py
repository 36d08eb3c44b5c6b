# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the chain of the decoder workers from the composed configuration."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.reconstruct import ReconstructionChain, SamplerSettings
from verl_uae.errors import ConfigError
from verl_uae.reward.build import build_scorer
from verl_uae.stages.common.build import DTYPES


def build_chain(config: DictConfig, device: str | torch.device) -> ReconstructionChain:
    """Load conditioner, decoder and reward models of a run.

    Args:
        config: the whole composed configuration.
        device: where the models live.

    Raises:
        ConfigError: for an impossible setting, naming its key.
        CheckpointError: for an incomplete decoder folder.
    """
    uae = config.uae
    decoder = Decoder.from_pretrained(uae.decoder.path, dtype=DTYPES[uae.decoder.dtype], device=device)
    conditioner = Conditioner.from_pretrained(
        uae.conditioner.path,
        length=uae.conditioner.length,
        role=uae.conditioner.role,
        dtype=DTYPES[uae.conditioner.dtype],
        device=device,
    )
    width = conditioner.width
    if decoder.projector.config.in_dim != width:
        raise ConfigError(
            "uae.conditioner.path",
            f"its language model has width {width}, the decoder's projector wants {decoder.projector.config.in_dim}",
        )
    return ReconstructionChain(
        conditioner, decoder.requires_grad_(False), build_scorer(config, device), sampler_settings(uae.decoder)
    )


def sampler_settings(decoder: Any) -> SamplerSettings:
    """The sampler's part of ``uae.decoder``."""
    names = SamplerSettings.__dataclass_fields__
    return SamplerSettings(**{name: decoder[name] for name in names})
