# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A small calculator: memory per GPU, time and cost of a G4U run.

Counts bytes and floating-point operations; it has not been calibrated against a measured GPU run. Every assumption
is a named constant below, so a measured value can replace it. What uae_g4u sets is read from its files.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from verl_uae.config import yaml_files
from verl_uae.errors import ConfigError

GIB = 1024**3

#: More is a slip of the hand.
MOST_GPUS, MOST_TRAINING_STEPS = 10**6, 10**9


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU type."""

    memory_gib: float
    bf16_tflops: float
    """Dense peak of the data sheet."""
    bandwidth_gbs: float
    usd_per_hour: float
    """A typical on-demand price; an assumption, prices differ by provider and month."""


GPUS = {
    "A100-40GB": Gpu(40, 312, 1555, 1.3),
    "A100-80GB": Gpu(80, 312, 2039, 1.8),
    "H100-80GB": Gpu(80, 989, 3350, 2.9),
    "H200-141GB": Gpu(141, 989, 4800, 3.5),
    "L40S-48GB": Gpu(48, 362, 864, 1.2),
}

#: Billions of parameters.
CAPTIONER_LM = 3.09
CAPTIONER_VIT = 0.67
DECODERS = {"sd35_large": 8.06, "sd35_medium": 2.47}
PROJECTOR = 0.05
VAE = 0.084
CLIP_VIT_L = 0.30

#: Share of the peak that large matrix products reach in practice.
ASSUMED_MFU = 0.4
#: Share of the memory bandwidth that token-by-token generation reaches.
ASSUMED_BANDWIDTH_SHARE = 0.5
#: GiB that the caption server needs beside its weights: activations of its profile run, cache of a batch's captions.
ASSUMED_SERVER_ROOM_GIB = 4.0
#: Share of a GPU that phases may fill.
ASSUMED_USABLE = 0.92
#: Seconds per step for weight sync, queue and scheduling.
ASSUMED_OVERHEAD_S = 4.0

#: Tokens of a picture with its instruction, and of a caption; both may be longer.
ASSUMED_PROMPT_TOKENS, ASSUMED_CAPTION_TOKENS = 160, 320

#: GPUs that the batch of uae_g4u is for, verl's ``trainer.n_gpus_per_node``.
GPUS_OF_A_BATCH = 8
#: Pixels along a side of what the MM-DiT reads as one token: the VAE's factor times the patch size of SD3.
PIXELS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """What uae_g4u sets of a run."""

    captions_per_gpu: float
    server_share: float
    """``gpu_memory_utilization`` of the caption server."""
    tokens: int
    """Of a picture and its condition, as the decoder reads them."""
    denoising_passes: int
    """Forward passes of the decoder for a picture."""


@functools.cache
def setting(decoder: str) -> Setting:
    """The values of uae_g4u with ``uae/decoder=NAME``, from the schema and the files."""
    from omegaconf import OmegaConf

    from verl_uae.chain.config import ConditionerConfig, DecoderConfig

    files = yaml_files()
    learn = OmegaConf.load(files["learn/captioner"])
    ours = OmegaConf.merge(DecoderConfig, OmegaConf.load(files[f"uae/decoder/{decoder}"]))
    rollout = learn.actor_rollout_ref.rollout
    return Setting(
        captions_per_gpu=learn.data.train_batch_size * rollout.n / GPUS_OF_A_BATCH,
        server_share=rollout.gpu_memory_utilization,
        tokens=ours.height * ours.width // PIXELS_PER_TOKEN**2 + ConditionerConfig.length,
        denoising_passes=ours.num_steps * (1 if ours.guidance == 1 else 2),
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run needs."""

    gpu: str
    gpus: int
    decoder: str
    memory_gib: dict[str, float]
    """Peak per GPU and phase, GiB."""
    server_share: float
    """Smallest ``gpu_memory_utilization`` that holds the caption server, at least the default, in steps of 0.05."""
    fits: bool
    fits_resident: bool
    """Whether the decoder may stay on the GPU in all phases (``uae.decoder.offload=false``)."""
    seconds: dict[str, float]
    """Per step and phase."""
    hours: float
    usd: float


def estimate(gpu: str, *, gpus: int = 8, steps: int = 1000, decoder: str = "sd35_large") -> Estimate:
    """Memory and cost of G4U with Qwen2.5-VL-3B, FSDP2 over all GPUs, decoder offloaded between phases.

    Args:
        gpu: a key of :data:`GPUS`.
        gpus: number of GPUs, in [1, `MOST_GPUS`].
        steps: training steps, in [1, `MOST_TRAINING_STEPS`].
        decoder: a key of :data:`DECODERS`.

    Raises:
        ConfigError: for an unknown GPU type or decoder, or an impossible number.
    """
    if gpu not in GPUS:
        raise ConfigError("--gpu", f"unknown type {gpu!r}; known: {', '.join(sorted(GPUS))}")
    if decoder not in DECODERS:
        raise ConfigError("--decoder", f"unknown decoder {decoder!r}; known: {', '.join(DECODERS)}")
    for option, count, most in (("--gpus", gpus, MOST_GPUS), ("--steps", steps, MOST_TRAINING_STEPS)):
        if not 1 <= count <= most:
            raise ConfigError(option, f"must lie in [1, {most}], got {str(count)[:20]}")
    card = GPUS[gpu]
    share = _server_share(card, setting(decoder).server_share)
    memory = _memory(card, gpus, decoder, share)
    seconds = _seconds(card, decoder)
    hours = steps * sum(seconds.values()) / 3600
    usable = ASSUMED_USABLE * card.memory_gib
    fits = max(memory.values()) <= usable
    stays = _decoder_weights(decoder)
    resident = fits and max(memory["caption"], memory["update"]) + stays <= usable
    cost = hours * gpus * card.usd_per_hour
    return Estimate(gpu, gpus, decoder, memory, share, fits, resident, seconds, hours, cost)


def _server_share(card: Gpu, default: float) -> float:
    return max(default, math.ceil(20 * (_server_weights() + ASSUMED_SERVER_ROOM_GIB) / card.memory_gib) / 20)


def _server_weights() -> float:
    """GiB of the captioner in bf16."""
    return 2 * (CAPTIONER_LM + CAPTIONER_VIT) * 1e9 / GIB


def _decoder_weights(decoder: str) -> float:
    """GiB of all frozen models: decoder, language model and projector in bf16, VAE and reward in fp32."""
    return (2 * (DECODERS[decoder] + PROJECTOR + CAPTIONER_LM) + 4 * (VAE + CLIP_VIT_L)) * 1e9 / GIB


def _memory(card: Gpu, gpus: int, decoder: str, share: float) -> dict[str, float]:
    # fp32 master weights, gradients and two Adam moments of the language model; fp32 weights of the frozen ViT.
    actor = (16 * CAPTIONER_LM + 4 * CAPTIONER_VIT) * 1e9 / GIB / gpus
    activations = 6.0
    return {
        "caption": share * card.memory_gib + actor,
        "decode": _decoder_weights(decoder) + activations + actor,
        "update": actor + 0.2 * _server_weights() + activations,
    }


def _seconds(card: Gpu, decoder: str) -> dict[str, float]:
    run = setting(decoder)
    flops = ASSUMED_MFU * card.bf16_tflops * 1e12
    tokens = run.captions_per_gpu * (ASSUMED_PROMPT_TOKENS + ASSUMED_CAPTION_TOKENS)
    weights_gb = 2 * (CAPTIONER_LM + CAPTIONER_VIT)
    forward = 2e9 * (CAPTIONER_LM + CAPTIONER_VIT) * tokens / flops
    drawn = 2e9 * DECODERS[decoder] * run.tokens * run.denoising_passes
    return {
        "caption": ASSUMED_CAPTION_TOKENS * weights_gb / (ASSUMED_BANDWIDTH_SHARE * card.bandwidth_gbs),
        "decode": run.captions_per_gpu * drawn / flops,
        "old and reference log-prob": 2 * forward,
        "update": 4 * forward,
        "overhead": ASSUMED_OVERHEAD_S,
    }


def render(result: Estimate) -> str:
    """The estimate as text."""
    lines = [f"G4U, Qwen2.5-VL-3B + {result.decoder}, {result.gpus} x {result.gpu} (calculated, not measured)"]
    lines += [f"  peak memory, {phase:<8} {gib:6.1f} GiB per GPU" for phase, gib in result.memory_gib.items()]
    lines.append("  fits" if result.fits else "  does NOT fit: use more GPUs, a larger type or sd35_medium")
    # What does not fit takes no time and costs nothing: it does not run.
    if result.fits:
        lines.append(
            f"  with actor_rollout_ref.rollout.gpu_memory_utilization={result.server_share:g}; the decoder "
            f"{'fits' if result.fits_resident else 'does NOT fit'} beside all of it (uae.decoder.offload=false)"
        )
        lines += [f"  {phase:<27} {value:6.1f} s per step" for phase, value in result.seconds.items()]
        lines.append(f"  total {result.hours:.1f} h, about {result.usd:,.0f} USD")
    return "\n".join(lines)
