# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.pretrain``. Sources: "SD3" is arXiv 2403.03206."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from verl_uae.config.path_keys import is_shards
from verl_uae.errors import ConfigError
from verl_uae.flow.config import DensityConfig
from verl_uae.settings import key
from verl_uae.stages.common.config import validate_training


@dataclass
class PretrainConfig:
    """``uae.pretrain``: flow matching of projector and MM-DiT on pairs of picture and long caption."""

    density: DensityConfig = key(factory=DensityConfig, stages=("pretrain",))

    condition_dropout: float = key(0.1, at_least=0, below=1, why="no caption would be learnt", stages=("pretrain",))
    """Share of samples trained with ``null_caption``, in [0, 1), for classifier-free guidance. SD3 drops each of its
    three text encoders with 0.464, all three with 0.1."""

    null_caption: str = key("", stages=("pretrain",))
    """Caption of dropped conditions; set ``uae.decoder.negative_prompt`` to the same for plain guidance."""

    buckets: bool = True
    """true: pictures keep their shape, in buckets around the area of uae.decoder.height. false: all are cut to
    uae.decoder.height x width."""

    bucket_step: int = key(64, at_least=1)
    """What both sides of a bucket are multiples of, pixels; a multiple of VAE factor times patch size. SDXL: 64."""

    max_aspect: float = key(2.0, at_least=1)
    """Largest ratio of the sides of a bucket, at least 1. Our choice."""

    cache_dir: str | None = None
    """Folder of latents and conditions on disk, shared by all ranks; null keeps none. Files are named by what made
    them, so one folder may serve many runs."""

    prefetch: int = key(0, at_least=0, at_most=64, stages=("pretrain",))
    """Batches, at most 64, that a second thread of a rank decodes and encodes, or reads from cache_dir, while the
    decoder learns from the one before; on a GPU in a stream of its own. Their latents and conditions wait in host
    memory, and VAE and language model work, with their memory, beside the update. What is learnt is the same, on a CPU
    to the last bit, after a resume too. 0: each batch when it is its turn. Our choice: 0."""

    shift: float | None = key(None, above=0, stages=("pretrain",))
    """Timestep shift of the trained levels, above 0; null takes uae.decoder.shift or the scheduler's."""

    validation_levels: int = key(8, at_least=1, stages=("pretrain",))
    """Noise levels, evenly spaced, at which the validation loss is taken, at least 1. Our choice."""


def validate(config: DictConfig) -> None:
    """Check what can be checked without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    validate_training(config)
    size, ranks = config.uae.train.micro_batch_size, config.trainer.n_gpus_per_node * config.trainer.nnodes
    if config.data.train_batch_size % (ranks * size):
        raise ConfigError(
            "uae.train.micro_batch_size",
            f"{size} must divide the {config.data.train_batch_size / ranks:g} pairs a rank has "
            f"(data.train_batch_size={config.data.train_batch_size} / {ranks} ranks)",
        )
    if is_shards(config.data.train_files) and not config.trainer.total_training_steps:
        raise ConfigError("trainer.total_training_steps", "is needed for tar shards: a stream has no length")
    if is_shards(config.data.val_files):
        raise ConfigError("data.val_files", "must be parquet: validation goes through all of it in order")
    decoder, pretrain = config.uae.decoder, config.uae.pretrain
    if pretrain.prefetch and decoder.offload:
        raise ConfigError(
            "uae.pretrain.prefetch",
            f"{pretrain.prefetch} needs VAE and language model on the device while the decoder learns; set it to 0, or "
            "uae.decoder.offload to false",
        )
    if not pretrain.buckets:
        return
    if decoder.height != decoder.width:
        raise ConfigError(
            "uae.decoder.width",
            f"{decoder.width} is not the height {decoder.height}: buckets lie around a square; set "
            "uae.pretrain.buckets=false for one size",
        )
    if decoder.height % pretrain.bucket_step:
        raise ConfigError("uae.pretrain.bucket_step", f"{pretrain.bucket_step} must divide {decoder.height}")
