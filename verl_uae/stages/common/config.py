# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.train``, ``uae.supervision`` and ``uae.panel``: what every stage has, or every stage that trains the decoder.

Sources: "Flow-GRPO" is arXiv 2505.05470.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.settings import check_choices, key

STRATEGIES = ("fsdp", "fsdp2")
#: ``model_dtype`` in which small updates are not rounded away.
FULL_PRECISION = (None, "fp32", "float32")
_CONTENTS = ("model", "optimizer", "extra", "diffusers")


@dataclass
class LoraConfig:
    """``uae.train.lora``: low-rank adapters of the MM-DiT, held in fp32."""

    rank: int = key(32, at_least=0)
    """Rank; 0 trains all weights of the MM-DiT. Flow-GRPO: 32."""

    alpha: int = key(64, at_least=1)
    """Scale of the adapters, at least 1. Flow-GRPO: 64."""

    target_modules: list[str] | None = None
    """Endings of module names that get an adapter; null: those of the decoder's family, in most the attention
    projections (docs/families.md)."""


@dataclass
class EmaConfig:
    """``uae.train.ema``: averaged weights: for validation, export and, in turns of the unified stage, the reward."""

    decay: float = key(0.9, at_least=0, below=1, why="the average would never move")
    """Decay per update of the average, in [0, 1); 0 uses the live weights. Flow-GRPO: 0.9."""

    every: int = key(8, at_least=1)
    """Optimiser updates between two updates of the average, at least 1. Flow-GRPO: 8."""

    warmup: bool = True
    """true: the decay after n updates of the run is min((1 + n) / (10 + n), decay), so the weights of the beginning
    leave the average soon (Flow-GRPO). false: ``decay`` from the start."""


@dataclass
class TrainConfig:
    """``uae.train``: which weights of the decoder move, and how; for every stage that trains it."""

    micro_batch_size: int = key(8, at_least=1)
    """Pictures per forward pass and rank, in sampling and in training alike, at least 1."""

    lora: LoraConfig = field(default_factory=LoraConfig)

    train_projector: bool = False
    """Train the projector too, all of its weights."""

    gradient_checkpointing: bool | None = True
    """Recompute activations in the backward pass: less memory, a third more compute. null: the training command decides
    before Ray starts, and its log says why: false where the estimated peak without it stays below the usable memory of
    the GPU that it finds, and on a CPU; else true."""

    ema: EmaConfig = field(default_factory=EmaConfig)

    fsdp_config: dict[str, Any] = field(default_factory=dict)
    """verl's FSDP engine settings (verl.workers.config.FSDPEngineConfig)."""

    optim: dict[str, Any] = field(default_factory=dict)
    """verl's optimiser settings (verl.workers.config.FSDPOptimizerConfig)."""

    save_contents: list[str] = field(default_factory=lambda: list(_CONTENTS))
    """What a checkpoint of the decoder holds: model is the weights that are trained; diffusers adds a folder that
    Decoder and stock diffusers load, at the steps that uae.checkpoint.export says."""


@dataclass
class SupervisionConfig:
    """``uae.supervision``: when a run that cannot go on ends."""

    stall_timeout_s: float = key(1800.0, above=0)
    """Longest time without progress, seconds, above 0: one wait for the ranks that train (exploring, log-probabilities,
    an update), one weight transfer, one validation batch, one checkpoint. Then the run ends with the name of the
    process that has stopped. Captions and decoder workers have limits of their own."""

    grace_s: float = key(600.0, above=0)
    """After SIGTERM or SIGINT: longest time until the step in work is over, its weights are saved and the run has
    ended, seconds, above 0. Then it ends without saving, as at a second signal. What sends the signal (Slurm,
    Kubernetes) must wait as long, or the newest saved step is the one before."""

    host_memory: float = key(0.93, above=0, at_most=1)
    """Share of the memory of a host, or of its container, above which the run is brought to an end at the next
    boundary and saved, in (0, 1]; 1 is never. Ray kills processes at 0.95, and the kernel soon after. Our choice."""

    peak_tflops: float | None = key(None, above=0)
    """Peak of one device, TFLOP/s, above 0, for `perf/mfu/...`: what the useful operations of a phase are divided by,
    whatever they are computed in. null: the data sheet's of the GPU that the training command finds, in the dtype of
    each operation; nothing is logged where it finds none that it knows."""

    max_invalid_fraction: float = key(0.5, at_least=0, at_most=1)
    """The run stops with the reasons when more than this share of a batch is invalid, in [0, 1]."""


@dataclass
class PanelConfig:
    """``uae.panel``: pictures of a fixed probe set, drawn at every validation (trainer.test_freq)."""

    probes: int = key(8, at_least=0)
    """Number of validation rows shown, at least 0."""

    dir: str = "${trainer.default_local_dir}/panels"
    """Folder of the local HTML files; always written."""


def is_joint(config: DictConfig) -> bool:
    """Whether one batch of drawings trains captioner and decoder: the unified stage's schedule ``joint``."""
    return bool(config.uae.stage == "unified" and config.uae.unified.schedule == "joint")


def step_kinds(config: DictConfig) -> tuple[str, ...]:
    """Kinds of steps that a run has: its stage, in the unified stage those of its turns or ``joint``."""
    if is_joint(config):
        return ("joint",)
    return ("g4u", "u4g") if config.uae.stage == "unified" else (str(config.uae.stage),)


def captions_drawn(config: DictConfig) -> int:
    """Captions of each picture that the decoder's policy draws in a step."""
    return int(config.actor_rollout_ref.rollout.n) if is_joint(config) else 1


def validate_training(config: DictConfig) -> None:
    """Check what every stage that trains the decoder takes from ``uae.train``, without models or data.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    _validate_backend(config)
    check_choices(config, {"uae.train.fsdp_config.strategy": STRATEGIES})
    for name in config.uae.train.save_contents:
        if name not in _CONTENTS:
            raise ConfigError("uae.train.save_contents", f"{name!r} is none of {', '.join(_CONTENTS)}")


def _validate_backend(config: DictConfig) -> None:
    strategy = OmegaConf.select(config, "uae.train.fsdp_config.strategy")
    if strategy == "megatron":
        raise ConfigError("uae.train.fsdp_config.strategy", "verl has no MM-DiT on Megatron; use fsdp2")
    target = str(config.uae.train.fsdp_config.get("_target_", ""))
    if target and not target.endswith(".FSDPEngineConfig"):
        raise ConfigError(
            "uae.train.fsdp_config", f"is of {target.rpartition('.')[2]}: verl has an MM-DiT on FSDP alone; use fsdp"
        )
    if config.uae.stage != "unified" and config.actor_rollout_ref.actor.strategy == "megatron":
        raise ConfigError("model_engine", "megatron has no MM-DiT in verl, and this stage trains nothing else; use dp")
    _validate_precision(config.uae.train)
    if config.uae.train.fsdp_config.get("ulysses_sequence_parallel_size", 1) != 1:
        raise ConfigError("uae.train.fsdp_config.ulysses_sequence_parallel_size", "an MM-DiT has no such split; use 1")


def _validate_precision(train: DictConfig) -> None:
    """Frozen weights beside adapters may be held in less than fp32, what trains may not."""
    precision, name = train.fsdp_config.get("model_dtype"), "uae.train.fsdp_config.model_dtype"
    if precision in FULL_PRECISION:
        return
    if train.lora.rank == 0 or train.train_projector:
        what = "all weights of the decoder train" if train.lora.rank == 0 else "the projector trains"
        raise ConfigError(
            name,
            f"{precision}: {what}, and small updates are rounded away; use fp32 (what is computed in is "
            "mixed_precision.param_dtype), or train adapters alone",
        )
    if train.fsdp_config.strategy != "fsdp2":
        raise ConfigError(name, f"{precision}: fsdp holds frozen weights and adapters in one dtype; use strategy=fsdp2")
