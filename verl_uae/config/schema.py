# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Typed schema of the ``uae:`` section.

Hydra checks types and unknown keys against it when the config is composed, before Ray starts. Defaults that
depend on the model or the machine live in the yaml groups; what is here is the same everywhere.
"Paper" is arXiv 2509.09666 v5, "code" its released inference code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from verl_uae.config.policy_schema import PolicyConfig, UnifiedConfig
from verl_uae.config.supervised_schema import ColdStartConfig, PretrainConfig


@dataclass
class DecoderConfig:
    """``uae.decoder``: the decoder that redraws captions for rewards and validation, and the workers that hold it."""

    path: str = MISSING
    """diffusers folder or hub id with transformer/, vae/, scheduler/ and conditioner/ (our projector)."""

    height: int = 512
    """Height of a reconstruction, pixels; multiple of VAE factor times patch size. Code: 512 in its training loss."""

    width: int = 512
    """Width of a reconstruction, pixels."""

    num_steps: int = 10
    """Denoising steps of the ODE sampler, at least 1. Code: 10 in its training loss, 40 in its demo."""

    guidance: float = 5.0
    """Classifier-free guidance scale, at least 1; 1 is off and halves the cost. Code: 5.0."""

    negative_prompt: str = "Generate a random, low quality, ugly, blur, bad and anime, cartoon image."
    """Caption of the unconditional branch. Code."""

    shift: float | None = None
    """Timestep shift, above 0; null takes the scheduler's (3.0 for SD3.5)."""

    seeds_per_caption: int = 1
    """K pictures per caption whose rewards are averaged, at least 1. Our choice: 1."""

    dtype: str = "bfloat16"
    """dtype of transformer and projector: float32, float16 or bfloat16. The VAE always runs in fp32."""

    batch_size: int = 16
    """Pictures denoised and scored together on a rank, at least 1; halved where memory runs out."""

    vae_batch_size: int = 2
    """Pictures the VAE encodes or decodes at a time, at least 1; halved where memory runs out, but not in the
    cold start's loss, which has a gradient. Decoding one takes 0.75 GiB at 512 x 512 and 3 GiB at 1024 x 1024, and one
    fills a GPU. Our choice."""

    schedule: str = "phased"
    """phased: decode the whole batch after the caption server sleeps. streamed: decode while captions arrive."""

    pool: str = "colocated"
    """colocated: the ranks share the trainer's GPUs. own: a pool of their own, see the two fields below."""

    n_gpus_per_node: int = 1
    """GPUs per node of an own pool."""

    nnodes: int = 1
    """Nodes of an own pool."""

    max_wait_ms: float = 50.0
    """Streamed only: longest time a caption waits for its micro-batch to fill, milliseconds."""

    offload: bool = False
    """Move frozen models (decoder, language model, VAE, reward models) to host memory while they are not used. By
    default on where captioner and caption server share the GPU (g4u, unified), and off where nothing else needs the
    memory (u4g, pretrain, cold_start). No effect on decoders in a pool of their own."""

    timeout_s: float = 1800.0
    """Longest time one decode phase, or a micro-batch of the streamed schedule, may take on a rank before the rank is
    killed, seconds, above 0."""

    max_restarts: int = 3
    """How often a dead rank is started again over the run; then the run stops with the reason."""


@dataclass
class ConditionerConfig:
    """``uae.conditioner``: the language model that turns a caption into the decoder's condition."""

    path: str = "${actor_rollout_ref.model.path}"
    """transformers folder or hub id; by default the captioner as it was before RL."""

    length: int = 640
    """Fixed number of text positions, chat template included; longer captions are cut at a token boundary."""

    role: str = "generate"
    """Chat role of the caption turn. Code."""

    dtype: str = "bfloat16"
    """dtype of the language model: float32, float16 or bfloat16."""

    weights: str = "frozen"
    """frozen: the reward stays the same function through the run."""


@dataclass
class TermConfig:
    """One entry of ``uae.reward.terms``."""

    name: str = MISSING
    """Registered name of the reward term, e.g. pixel, ssim, clip."""

    label: str | None = None
    """Name in metrics and panels; null takes ``name``. Needed when one term is used twice."""

    weight: float = 1.0
    """Weight in the sum; a held-out term has weight 0."""

    held_out: bool = False
    """True: measured and logged, can never enter the reward."""

    normalize: str = "none"
    """How the term enters the sum in training. none: as it is. running: minus the mean and divided by the standard
    deviation of all its valid values of the run so far, kept in checkpoints. rank: as the share of the other members of
    its group that are worse, in [0, 1]. Validation has the plain sum."""

    tie: float = 0.0
    """With normalize=rank, values that differ by no more count as equal, units of the term, at least 0. Without it, a
    difference of rounding is worth as much as any other."""

    floor: float | None = None
    """A sample whose value of this term is worse (below, or above where lower is better) counts as invalid; null: no
    gate. Not for held-out terms. Mind max_invalid_fraction."""

    params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the term."""


@dataclass
class RewardConfig:
    """``uae.reward``: similarity of source and reconstruction, and how groups turn it into advantages."""

    terms: list[TermConfig] = field(default_factory=list)
    """Reward terms. A function given as reward.custom_reward_function.path is one more, of weight custom_weight."""

    files: list[str] = field(default_factory=list)
    """Python files whose ``@register_reward`` terms can be named in terms: paths, ``pkg://`` or dotted modules. They
    run with your rights in every process that scores; path and SHA-256 are logged."""

    custom_weight: float = 1.0
    """Weight of verl's reward.custom_reward_function, used only when its path is set."""

    timeout_s: float = 60.0
    """Longest time one batch may spend in one term, seconds, above 0; then the samples are marked timeout."""

    min_std: float = 1e-3
    """Groups whose reward std is below it give no signal, in units of the reward, at least 0. Cosine rewards live
    in a narrow band, so rounding noise would otherwise become advantage. Our choice."""

    advantage_std: str = "group"
    """What advantages are divided by: group (GRPO, paper), global (std of the batch) or none."""

    max_invalid_fraction: float = 0.5
    """The run stops with the reasons when more than this share of a batch is invalid, in [0, 1]."""

    source_cache_mib: int = 256
    """Host memory of each rank for features of source pictures, MiB, at least 0; 0 encodes them anew for every sample.
    Our choice: 256, which holds the pooled vectors of 87 000 pictures or the patch tokens of 256, of CLIP ViT-L/14."""

    tripwire_window: int = 20
    """Steps over which a held-out term that gets worse while the reward rises is flagged, at least 3; 0: never.
    Our choice."""


@dataclass
class RolloutExtrasConfig:
    """``uae.rollout``: what our agent loop adds to verl's rollout."""

    timeout_s: float = 600.0
    """Longest time one caption may take, seconds, above 0; then that sample is marked timeout."""

    seeded: bool = True
    """Give every caption request its own derived seed; needed for repeatable runs."""

    poll_interval_s: float = 0.1
    """How often the trainer asks whether all captions are there, seconds, above 0. verl's own value is 2.0."""


@dataclass
class PanelConfig:
    """``uae.panel``: pictures of a fixed probe set, drawn at every validation (trainer.test_freq)."""

    probes: int = 8
    """Number of validation rows shown, at least 0."""

    dir: str = "${trainer.default_local_dir}/panels"
    """Folder of the local HTML files; always written."""


@dataclass
class CheckpointConfig:
    """``uae.checkpoint``: what of a step is written and checked; how many stay is trainer.max_actor_ckpt_to_keep."""

    digests: bool = True
    """Write the SHA-256 of every file into the marker of a step and compare them on resume: damage, or a file of
    another run, is refused by name. Both read the whole checkpoint once, eight files at a time."""

    export: str = "last"
    """Which saved steps also get the folder ``decoder/`` with all weights, where uae.policy.save_contents has
    diffusers. last: the last step of the run. every: all. `verl-uae export` makes such a folder of any step."""


@dataclass
class SupervisionConfig:
    """``uae.supervision``: how long a run that cannot go on may last."""

    stall_timeout_s: float = 1800.0
    """Longest time without progress, seconds, above 0: one wait for the ranks that train (exploring, log-probabilities,
    an update), one weight transfer, one validation batch, one checkpoint. Then the run ends with the name of the
    process that has stopped. Captions and decoder workers have limits of their own."""

    grace_s: float = 600.0
    """After SIGTERM or SIGINT: longest time until the step in work is over, its weights are saved and the run has
    ended, seconds, above 0. Then it ends without saving, as at a second signal. What sends the signal (Slurm,
    Kubernetes) must wait as long, or the newest saved step is the one before."""


@dataclass
class UAEConfig:
    """The ``uae:`` section."""

    stage: str = "g4u"
    """Training stage; set by the config name."""

    seed: int = 42
    """Run seed; every random number is derived from it, the step, the sample and its purpose."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    conditioner: ConditionerConfig = field(default_factory=ConditionerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutExtrasConfig = field(default_factory=RolloutExtrasConfig)
    panel: PanelConfig = field(default_factory=PanelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    unified: UnifiedConfig = field(default_factory=UnifiedConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)


def register_schema() -> None:
    """Make the schema known to Hydra as ``uae/schema``."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="uae", name="schema", node=UAEConfig, provider="verl_uae")
