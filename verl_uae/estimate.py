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
    "L4-24GB": Gpu(24, 121, 300, 0.7),
    "L40S-48GB": Gpu(48, 362, 864, 1.2),
    "RTX4090-24GB": Gpu(24, 165, 1008, 0.5),
}

#: Billions of parameters.
CAPTIONER_LM = 3.09
CAPTIONER_VIT = 0.67
#: Billions of parameters of adapters of rank 1 on every linear layer of the language model, inputs plus outputs of
#: each: 36 blocks of width 2048 with 256 of keys and of values and 11008 of the MLP.
ADAPTERS_PER_RANK = 36 * (2 * 4096 + 2 * 2304 + 3 * 13056) / 1e9
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

#: Bytes of a weight that trains: fp32 weight and gradient, two moments of Adam. Of one that does not: `_WIDTHS`.
BYTES_OF_A_TRAINED = 16
_WIDTHS = {"fp32": 4, "bf16": 2}
#: GiB per second between host and GPU, and how often a captioner that leaves the GPU between phases is moved in a step:
#: there and back for old and reference log-probabilities, update and weight sync.
ASSUMED_HOST_GIB_S, MOVES = 10.0, 8

#: Choices of ``captioner/training``.
TRAININGS = ("full", "lora", "cyclecap")
#: Pixels along a side of what the MM-DiT reads as one token: the VAE's factor times the patch size of SD3.
PIXELS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """What uae_g4u sets of a run."""

    images: int
    """Of a step on 8 GPUs or fewer; more GPUs have one each."""
    captions: int
    """Of an image."""
    rank: int
    """Of the captioner's adapters; 0 trains its language model."""
    width: int
    """Bytes of a weight of the captioner that does not train."""
    server_share: float
    """``gpu_memory_utilization`` of the caption server."""
    tokens: int
    """Of a picture and its condition, as the decoder reads them."""
    denoising_passes: int
    """Forward passes of the decoder for a picture."""


@functools.cache
def setting(decoder: str, training: str = "full") -> Setting:
    """The values of uae_g4u with ``uae/decoder=NAME captioner/training=NAME``, from the schema and the files."""
    from omegaconf import OmegaConf

    from verl_uae.chain.config import ConditionerConfig, DecoderConfig

    files = yaml_files()
    # cyclecap is lora with changes.
    chosen = ["lora", "cyclecap"] if training == "cyclecap" else [training]
    layers = ["learn/captioner", *(f"captioner/training/{name}" for name in chosen)]
    run = OmegaConf.merge(*(OmegaConf.load(files[name]) for name in layers))
    ours = OmegaConf.merge(DecoderConfig, OmegaConf.load(files[f"uae/decoder/{decoder}"]))
    rollout, model = run.actor_rollout_ref.rollout, run.actor_rollout_ref.get("model", {})
    precision = OmegaConf.select(run, "actor_rollout_ref.actor.fsdp_config.model_dtype", default="fp32")
    return Setting(
        images=run.data.train_batch_size,
        captions=rollout.n,
        rank=model.get("lora_rank", 0),
        width=_WIDTHS[precision],
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
    training: str
    memory_gib: dict[str, float]
    """Peak per GPU and phase, GiB."""
    server_share: float
    """Smallest ``gpu_memory_utilization`` that holds the caption server, at least the default, in steps of 0.05."""
    offload: bool
    """Whether the captioner that trains has to leave the GPU between phases (``param_offload`` and
    ``optimizer_offload`` of ``actor_rollout_ref.actor.fsdp_config``)."""
    fits: bool
    fits_resident: bool
    """Whether the decoder may stay on the GPU in all phases (``uae.decoder.offload=false``)."""
    seconds: dict[str, float]
    """Per step and phase."""
    hours: float
    usd: float


def estimate(
    gpu: str, *, gpus: int = 8, steps: int = 1000, decoder: str = "sd35_large", training: str = "full"
) -> Estimate:
    """Memory and cost of G4U with Qwen2.5-VL-3B, FSDP2 over all GPUs, decoder offloaded between phases.

    Args:
        gpu: a key of :data:`GPUS`.
        gpus: number of GPUs, in [1, `MOST_GPUS`].
        steps: training steps, in [1, `MOST_TRAINING_STEPS`].
        decoder: a key of :data:`DECODERS`.
        training: one of :data:`TRAININGS`.

    Raises:
        ConfigError: for an unknown GPU type, decoder or training, or an impossible number.
    """
    if gpu not in GPUS:
        raise ConfigError("--gpu", f"unknown type {gpu!r}; known: {', '.join(sorted(GPUS))}")
    for option, name, known in (("--decoder", decoder, tuple(DECODERS)), ("--training", training, TRAININGS)):
        if name not in known:
            raise ConfigError(option, f"unknown {option[2:]} {name!r}; known: {', '.join(known)}")
    for option, count, most in (("--gpus", gpus, MOST_GPUS), ("--steps", steps, MOST_TRAINING_STEPS)):
        if not 1 <= count <= most:
            raise ConfigError(option, f"must lie in [1, {most}], got {str(count)[:20]}")
    card, run = GPUS[gpu], setting(decoder, training)
    share = _server_share(card, run.server_share)
    usable = ASSUMED_USABLE * card.memory_gib
    memory = _memory(card, gpus, decoder, run, share, offload=False)
    offload = max(memory.values()) > usable
    if offload:
        memory = _memory(card, gpus, decoder, run, share, offload=True)
    seconds = _seconds(card, gpus, decoder, run, offload=offload)
    hours = steps * sum(seconds.values()) / 3600
    fits = max(memory.values()) <= usable
    stays = _decoder_weights(decoder)
    resident = fits and max(memory["caption"], memory["update"]) + stays <= usable
    cost = hours * gpus * card.usd_per_hour
    return Estimate(gpu, gpus, decoder, training, memory, share, offload, fits, resident, seconds, hours, cost)


def _server_share(card: Gpu, default: float) -> float:
    return max(default, math.ceil(20 * (_server_weights() + ASSUMED_SERVER_ROOM_GIB) / card.memory_gib) / 20)


def _server_weights() -> float:
    """GiB of the captioner in bf16."""
    return 2 * (CAPTIONER_LM + CAPTIONER_VIT) * 1e9 / GIB


def _decoder_weights(decoder: str) -> float:
    """GiB of all frozen models: decoder, language model and projector in bf16, VAE and reward in fp32."""
    return (2 * (DECODERS[decoder] + PROJECTOR + CAPTIONER_LM) + 4 * (VAE + CLIP_VIT_L)) * 1e9 / GIB


def _actor(gpus: int, run: Setting) -> float:
    """GiB of the captioner that trains, on one of the GPUs: with adapters none of its own weights does, else all but
    those of the ViT."""
    trained = run.rank * ADAPTERS_PER_RANK if run.rank else CAPTIONER_LM
    frozen = CAPTIONER_VIT + (CAPTIONER_LM if run.rank else 0)
    return (BYTES_OF_A_TRAINED * trained + run.width * frozen) * 1e9 / GIB / gpus


def _memory(card: Gpu, gpus: int, decoder: str, run: Setting, share: float, *, offload: bool) -> dict[str, float]:
    actor = _actor(gpus, run)
    waiting = 0.0 if offload else actor
    activations = 6.0
    return {
        "caption": share * card.memory_gib + waiting,
        "decode": _decoder_weights(decoder) + activations + waiting,
        "update": actor + 0.2 * _server_weights() + activations,
    }


def _seconds(card: Gpu, gpus: int, decoder: str, run: Setting, *, offload: bool) -> dict[str, float]:
    flops = ASSUMED_MFU * card.bf16_tflops * 1e12
    captions = run.captions * max(run.images, gpus) / gpus
    tokens = captions * (ASSUMED_PROMPT_TOKENS + ASSUMED_CAPTION_TOKENS)
    weights_gb = 2 * (CAPTIONER_LM + CAPTIONER_VIT)
    forward = 2e9 * (CAPTIONER_LM + CAPTIONER_VIT) * tokens / flops
    drawn = 2e9 * DECODERS[decoder] * run.tokens * run.denoising_passes
    return {
        "caption": ASSUMED_CAPTION_TOKENS * weights_gb / (ASSUMED_BANDWIDTH_SHARE * card.bandwidth_gbs),
        "decode": captions * drawn / flops,
        "old and reference log-prob": 2 * forward,
        "update": 4 * forward,
        "overhead": ASSUMED_OVERHEAD_S + (MOVES * _actor(gpus, run) / ASSUMED_HOST_GIB_S if offload else 0.0),
    }


def render(result: Estimate) -> str:
    """The estimate as text."""
    what = {"full": "all weights", "lora": "adapters", "cyclecap": "adapters, CycleCap"}[result.training]
    models = f"G4U of Qwen2.5-VL-3B ({what}) + {result.decoder}"
    lines = [f"{models}, {result.gpus} x {result.gpu} (calculated, not measured)"]
    lines += [f"  peak memory, {phase:<8} {gib:6.1f} GiB per GPU" for phase, gib in result.memory_gib.items()]
    smaller = ", sd35_medium or captioner/training=lora" if result.training == "full" else " or sd35_medium"
    lines.append("  fits" if result.fits else f"  does NOT fit: use more GPUs, a larger type{smaller}")
    # What does not fit takes no time and costs nothing: it does not run.
    if result.fits:
        lines.append(
            f"  with actor_rollout_ref.rollout.gpu_memory_utilization={result.server_share:g}; the decoder "
            f"{'fits' if result.fits_resident else 'does NOT fit'} beside all of it (uae.decoder.offload=false)"
        )
        if result.offload:
            section = "actor_rollout_ref.actor.fsdp_config"
            lines.append(f"  with {section}.param_offload=true and {section}.optimizer_offload=true")
        lines += [f"  {phase:<27} {value:6.1f} s per step" for phase, value in result.seconds.items()]
        lines.append(f"  total {result.hours:.1f} h, about {result.usd:,.0f} USD")
    return "\n".join(lines)
