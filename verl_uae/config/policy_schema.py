# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Typed schema of ``uae.policy`` and ``uae.unified``: the decoder as a policy (stages u4g and unified).

Sources: "Flow-GRPO" is arXiv 2505.05470, "Fast" the later setting of its authors' code, "CPS" 2509.05952, "MixGRPO"
2507.21802, "Guard" 2510.22319, "Flow-DPPO" 2606.11025, "DiffusionNFT" 2509.16117.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class WindowConfig:
    """``uae.policy.window``: which denoising steps are stochastic and trained; drawn once per batch."""

    mode: str = "random"
    """random: the start is drawn for every batch (Fast). fixed: it starts at ``low``. progressive: it moves from noise
    to data (MixGRPO). all: every step that can be trained (Flow-GRPO)."""

    size: int = 3
    """Consecutive stochastic steps, at least 1. Fast: 2 to 3."""

    low: int = 0
    """First step the window may start at, at least 0; 0 is pure noise."""

    high: int | None = None
    """Step the window must end before; null is half of the steps. Fast: the high-noise half."""

    stride: int = 1
    """progressive: steps the window moves at a time. MixGRPO: 1."""

    every: int = 25
    """progressive: batches between two moves. MixGRPO: 25."""

    min_sigma_next: float = 0.05
    """Steps that end below this noise level are never stochastic, in [0, 1]. Our choice: a double-shifted table
    ends with a step that is almost none."""

    min_std: float = 0.05
    """Steps whose transition std is below it are never stochastic, at least 0. Our choice."""

    max_gain: float = 2.0
    """Steps whose |d mean / d velocity| / std is above it are never stochastic, above 0. Our choice."""


@dataclass
class ObjectiveConfig:
    """``uae.policy.objective``: the loss of the decoder policy."""

    name: str = "dppo"
    """Registered objective: flow_grpo, dppo, grpo_guard, nft, or one of your own."""

    path: str | None = None
    """Python file that registers the objective, for your own."""

    params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the objective; the presets ``decoder/objective`` set them."""

    num_sigmas: int = 2
    """Forward-process objectives (nft): noise levels drawn per picture and update, at least 1. Our choice."""

    old_decay: float = 0.9
    """Forward-process objectives (nft): decay of the old policy towards the current one, after every rollout, in
    [0, 1); 0 is strictly on policy. Our choice within the schedules of DiffusionNFT (0 up to 0.5 or 0.999)."""


@dataclass
class ReferenceKLConfig:
    """``uae.policy.reference_kl``: penalty on the distance to the policy before RL."""

    coef: float = 0.0
    """Weight of the penalty, at least 0; 0 switches it off and keeps no reference. Fast: 0 with a window."""

    form: str = "exact"
    """exact: KL of the transitions per latent dimension. flow_grpo: without the step size, as its code has it.
    velocity: mean squared difference of velocities. x0: of the predicted pictures."""


@dataclass
class PolicyAdvantageConfig:
    """``uae.policy.advantage``: group-relative advantages of the reconstructions of one caption."""

    std: str = "global"
    """What advantages are divided by: group, global (std of the batch, Flow-GRPO) or none."""

    min_std: float = 1e-4
    """Groups whose reward std is below it give no signal, in units of the reward, at least 0. Our choice."""

    clamp: float | None = 5.0
    """Largest absolute advantage, above 0; null does not clamp. Flow-GRPO: 5."""


@dataclass
class LoraConfig:
    """``uae.policy.lora``: low-rank adapters of the MM-DiT, held in fp32."""

    rank: int = 32
    """Rank; 0 trains all weights of the MM-DiT. Flow-GRPO: 32."""

    alpha: int = 64
    """Scale of the adapters, at least 1. Flow-GRPO: 64."""

    target_modules: list[str] = field(
        default_factory=lambda: [
            "attn.to_q",
            "attn.to_k",
            "attn.to_v",
            "attn.to_out.0",
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
        ]
    )
    """Endings of module names that get an adapter. Flow-GRPO: the attention projections of both streams."""


@dataclass
class EmaConfig:
    """``uae.policy.ema``: averaged weights, used for validation, export and, in the unified stage, the reward."""

    decay: float = 0.9
    """Decay per update of the average, in [0, 1); 0 uses the live weights. Flow-GRPO: 0.9."""

    every: int = 8
    """Optimiser updates between two updates of the average, at least 1. Flow-GRPO: 8."""

    warmup: bool = True
    """true: the decay after n updates of the run is min((1 + n) / (10 + n), decay), so the weights of the beginning
    leave the average soon (Flow-GRPO). false: ``decay`` from the start."""


@dataclass
class CaptionSourceConfig:
    """``uae.policy.captions``: where the captions of stage u4g come from. One per image, kept for the whole run."""

    source: str = "encoder"
    """encoder: written by the frozen captioner. column: read from ``extra_info.caption`` of the dataset row."""

    do_sample: bool = False
    """false: greedy. true: sampled at ``temperature``."""

    temperature: float = 1.0
    """Temperature of sampled captions, above 0."""

    dtype: str = "bfloat16"
    """dtype of the captioner: float32, float16 or bfloat16."""

    batch_size: int = 16
    """Captions generated together on a rank, at least 1."""

    cache_size: int = 65536
    """Captions kept, at least 1; the oldest go first."""

    condition_cache_size: int = 1024
    """Conditions kept per rank in host memory, at least 1."""


@dataclass
class PolicyConfig:
    """``uae.policy``: the decoder as a policy: how it explores, what it learns from, which weights move."""

    num_steps: int = 10
    """Denoising steps of the training sampler, at least 2. Flow-GRPO: 10. Evaluation uses uae.decoder.num_steps."""

    table: str = "even"
    """Noise levels: even (one shift, the last step ends at 0), terminal (one shift, down to t = 0.001) or double_shift
    (what diffusers' scheduler yields by default, and Flow-GRPO's code with it)."""

    kernel: str = "cps"
    """Transition of a stochastic step: cps, flow_sde or dance."""

    noise_level: float = 0.8
    """eta of cps in (0, 1), a of flow_sde, eta of dance. CPS: 0.8; Flow-GRPO: 0.7; DanceGRPO: 0.3."""

    reduction: str = "mean"
    """Log-probability over latent dimensions: mean (of the normalised Gaussian) or raw (-(x - mean)^2, the published
    code of CPS)."""

    window: WindowConfig = field(default_factory=WindowConfig)

    guidance: float = 1.0
    """Classifier-free guidance while exploring and training, at least 1; 1 is off. Fast: 1."""

    samples_per_caption: int = 24
    """n, size of a group, at least 2. Flow-GRPO: 24."""

    share_noise: bool = False
    """true: the group starts from one initial noise (DanceGRPO, MixGRPO). false: from n of them (Flow-GRPO)."""

    updates_per_rollout: int = 2
    """Optimiser updates per batch, at least 1; each uses an equal share of the samples. Flow-GRPO: 2."""

    sampler: str = "live"
    """What draws while exploring. live: the trained module itself, which gathers its shards block by block at every
    velocity. replica: an unsharded copy on every rank, where memory holds the whole MM-DiT; old log-probabilities are
    then computed again in the trained module, so that the ratio still starts at 1. Our choice."""

    micro_batch_size: int = 8
    """Pictures per forward pass and rank, in sampling and in training alike, at least 1."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reference_kl: ReferenceKLConfig = field(default_factory=ReferenceKLConfig)
    advantage: PolicyAdvantageConfig = field(default_factory=PolicyAdvantageConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    train_projector: bool = False
    """Train the projector too, all of its weights."""

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, a third more compute."""

    ema: EmaConfig = field(default_factory=EmaConfig)

    captions: CaptionSourceConfig = field(default_factory=CaptionSourceConfig)

    fsdp_config: dict[str, Any] = field(default_factory=dict)
    """verl's FSDP engine settings (verl.workers.config.FSDPEngineConfig)."""

    optim: dict[str, Any] = field(default_factory=dict)
    """verl's optimiser settings (verl.workers.config.FSDPOptimizerConfig)."""

    save_contents: list[str] = field(default_factory=lambda: ["model", "optimizer", "extra", "diffusers"])
    """What a checkpoint of the policy holds: model is the weights that are trained; diffusers adds a folder that
    Decoder and stock diffusers load, at the steps that uae.checkpoint.export says."""


@dataclass
class UnifiedConfig:
    """``uae.unified``: how the unified stage alternates."""

    g4u_steps: int = 50
    """Steps of Generation for Understanding in a cycle, at least 1. Our choice."""

    u4g_steps: int = 50
    """Steps of Understanding for Generation in a cycle, at least 1. Our choice."""

    first: str = "g4u"
    """Which stage a cycle starts with: g4u or u4g. Paper: g4u."""
