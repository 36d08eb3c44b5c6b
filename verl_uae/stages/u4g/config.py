# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.u4g``: the decoder as a policy (stages u4g and unified).

Sources: "Flow-GRPO" is arXiv 2505.05470, "Fast" the later setting of its authors' code, "CPS" 2509.05952, "MixGRPO"
2507.21802, "Guard" 2510.22319, "Flow-DPPO" 2606.11025, "DiffusionNFT" 2509.16117, "AWM" 2509.25050, "DGPO" 2510.08425,
"CRD" 2603.14128, "NormGuard" 2606.27771, "TempFlow" 2508.04324, "Sol-RL" 2604.06916, "DAPO" 2503.14476.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.chain.config import MOST_STEPS
from verl_uae.config import STAGES
from verl_uae.errors import ConfigError
from verl_uae.flow.config import CHOICES, FORWARD_FORMS, KERNELS, PENALTY_FORMS, STDS, TABLES, WindowConfig
from verl_uae.settings import DTYPES, key
from verl_uae.stages.common.config import captions_drawn, is_joint, validate_training

if TYPE_CHECKING:
    from verl_uae.flow.objective.registry import BoundObjective


@dataclass
class ObjectiveConfig:
    """``uae.u4g.objective``: the loss of the decoder policy."""

    name: str = "dppo"
    """Registered objective: flow_grpo, dppo, grpo_guard, nft, awm, dgpo, crd, or one of your own."""

    path: str | None = None
    """Python file that registers the objective, for your own."""

    params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the objective; the presets ``decoder/objective`` set them."""

    num_sigmas: int = key(2, at_least=1)
    """Forward-process objectives (nft, awm, dgpo, crd): noise levels drawn per picture and update, at least 1. Our
    choice; AWM: 6, DGPO: 4."""

    share: str = key("none", choices=("none", "levels", "noise"))
    """Forward-process objectives: what the members of a group share. none: every picture has noise levels and noise of
    its own. levels: the group has one set of levels. noise: one set of levels and of noises (DGPO). Objectives that
    compare a group's losses (dgpo, crd) need levels or noise."""

    old_decay: float = key(0.9, at_least=0, below=1, why="the old policy would never move")
    """Forward-process objectives (nft, awm, dgpo, crd): decay of the old policy towards the current one, after every
    rollout, in [0, 1); 0 is strictly on policy. Our choice within the schedules of DiffusionNFT (0 up to 0.5 or 0.999);
    AWM and DGPO: up to 0.3."""

    draw_from: str = key("old", choices=("old", "current"))
    """Forward-process objectives: which weights draw the pictures. old: the old policy (DiffusionNFT). current: the
    weights that train, while the old policy is what they are compared with (DGPO, CRD)."""

    norm_guard: float = key(0.0, at_least=0)
    """Forward-process objectives: weight of max(0, rms(v) - rms(v_ref)), a hinge on velocities longer than those of the
    policy before RL, at least 0; 0 is off. NormGuard; no published weight was found."""


@dataclass
class ReferenceKLConfig:
    """``uae.u4g.reference_kl``: penalty on the distance to the policy before RL."""

    coef: float = key(0.0, at_least=0)
    """Weight of the penalty, at least 0; 0 switches it off. Fast: 0 with a window; AWM: 0.003; CRD: 0.1."""

    form: str = key("exact", choices=PENALTY_FORMS)
    """exact: KL of the transitions per latent dimension. flow_grpo: without the step size, as its code has it.
    velocity: mean squared difference of velocities. x0: of the predicted pictures."""

    floor: float | None = key(None, at_least=0)
    """Weight of the penalty for a picture whose advantage is -uae.u4g.advantage.clamp, at least 0 and at most ``coef``,
    which is that at +clamp; linear between. null: ``coef`` for all. CRD: 1e-4."""

    guidance: float | None = key(None, at_least=1)
    """Classifier-free guidance of the reference, at least 1; null: uae.u4g.guidance. CRD: 4.5, so that what is trained
    without guidance is anchored to what is drawn with it."""


@dataclass
class AdvantageConfig:
    """``uae.u4g.advantage``: group-relative advantages of the reconstructions of one caption."""

    std: str = key("global", choices=STDS)
    """What advantages are divided by: group, global (std of the batch, Flow-GRPO) or none."""

    min_std: float = key(1e-4, at_least=0)
    """Groups whose reward std is below it give no signal, in units of the reward, at least 0. Our choice."""

    clamp: float | None = key(5.0, above=0)
    """Largest absolute advantage, above 0; null does not clamp. Flow-GRPO: 5."""


@dataclass
class PoolConfig:
    """``uae.u4g.pool``: candidates of which some train; each caption has as many, and as many of them are chosen; none
    with uae.unified.schedule=joint."""

    size: int | None = key(None, at_least=2)
    """Candidates of a caption, at least uae.u4g.samples_per_caption, which are chosen of them; null: just as many.
    Sol-RL: 96 for 24."""

    steps: int | None = key(None, at_least=1)
    """Denoising steps of a candidate's preview, at least 1 and fewer than uae.u4g.num_steps; by the ODE, and those that
    are chosen are drawn again with the training sampler. null: candidates are drawn with the training sampler, and
    nothing is drawn twice. Sol-RL: 6 of 10."""

    choose: str = key("best_worst", choices=CHOICES)
    """By their rewards. best_worst: the best half and the worst half (Sol-RL). diverse: as many of the best and of the
    worst as make the largest variance (PODS). random: any, as a control."""

    keep_captions: int | None = key(None, at_least=1)
    """Captions of a batch that are trained, at least 1 and at most data.train_batch_size: those whose chosen candidates
    have the largest standard deviation of rewards; null: all."""


@dataclass
class CaptionSourceConfig:
    """``uae.u4g.captions``: where the captions of stage u4g come from. One per image, kept for the whole run."""

    source: str = key("captioner", choices=("captioner", "column"))
    """captioner: written by the frozen captioner. column: read from ``extra_info.caption`` of the dataset row."""

    writer: str = key("ranks", choices=("ranks", "server"), stages=("u4g",))
    """What generates captions of source=captioner. ranks: transformers, in the ranks that train the decoder. server:
    servers of ``actor_rollout_ref.rollout.name`` (vllm, hf) in their places, asleep between; these take that section's
    dtype, memory and parallel sizes."""

    do_sample: bool = False
    """false: greedy. true: sampled at ``temperature``."""

    temperature: float = key(1.0, above=0)
    """Temperature of sampled captions, above 0."""

    dtype: str = key("bfloat16", choices=DTYPES, stages=("u4g",))
    """dtype of the captioner: float32, float16 or bfloat16."""

    batch_size: int = key(16, at_least=1, stages=("u4g",))
    """Captions generated together on a rank, at least 1."""

    cache_size: int = key(65536, at_least=1, stages=("u4g",))
    """Captions kept, at least 1; the oldest go first."""


@dataclass
class U4GConfig:
    """``uae.u4g``: how the decoder explores, and what it learns from."""

    num_steps: int = key(10, at_least=2, at_most=MOST_STEPS)
    """Denoising steps of the training sampler, at least 2. Flow-GRPO: 10. Evaluation uses uae.decoder.num_steps."""

    table: str = key("even", choices=TABLES)
    """Noise levels: even (one shift, the last step ends at 0), terminal (one shift, down to t = 0.001) or double_shift
    (what diffusers' scheduler yields by default, and Flow-GRPO's code with it)."""

    kernel: str = key("cps", choices=KERNELS)
    """Transition of a stochastic step: cps, flow_sde or dance; ode, which has none, for forward-process objectives
    (nft)."""

    noise_level: float = key(0.8, at_least=0)
    """eta of cps in (0, 1), a of flow_sde, eta of dance. CPS: 0.8; Flow-GRPO: 0.7; DanceGRPO: 0.3."""

    reduction: str = key("mean", choices=("mean", "raw"))
    """Log-probability over latent dimensions: mean (of the normalised Gaussian) or raw (-(x - mean)^2, the published
    code of CPS)."""

    window: WindowConfig = field(default_factory=WindowConfig)

    guidance: float = key(1.0, at_least=1, stages=STAGES)
    """Classifier-free guidance while exploring and training, at least 1; 1 is off. Fast: 1."""

    samples_per_caption: int = key(24, at_least=2)
    """n, size of a group, at least 2. Flow-GRPO: 24."""

    share_noise: bool = False
    """true: the group starts from one initial noise (DanceGRPO, MixGRPO), and only stochastic steps tell its members
    apart, so that kernel=ode has to have false. false: from n of them (Flow-GRPO)."""

    shared_prefix: bool = False
    """true: what a group has in common with ``share_noise``, its steps before the window and the velocity of the first
    step of it, is computed once for all members of a micro-batch, drawing and training alike (BranchGRPO shares
    prefixes so). The same but for rounding, and the ratio still starts at 1; with ``replay_steps`` above 1 the first
    step is a pass of its own. false: once for each, as in published codes."""

    updates_per_rollout: int = key(2, at_least=1)
    """Optimiser updates per batch, at least 1; each uses an equal share of the samples. Flow-GRPO: 2."""

    replay_steps: int | None = key(1, at_least=1)
    """Trained places of a sample (steps of the window, or drawn noise levels) that go through the model in one pass
    forward and back, at least 1, at most as many as there are; null: all of them. Weights are gathered so many times
    less often, and activations take so many times the memory; the loss is the same. A pass of another size rounds
    otherwise than the sampler did, so above 1 old log-probabilities are the pass's own in the first update of a batch,
    and are computed again for the later ones. Our choice: 1, the sampler's own values."""

    sampler: str = key("live", choices=("live", "replica"))
    """What draws while exploring. live: the trained module itself, which gathers its shards block by block at every
    velocity. replica: an unsharded copy on every rank, where memory holds the whole MM-DiT; old log-probabilities are
    then the trained module's, as with ``replay_steps`` above 1, so that the ratio still starts at 1. Our choice."""

    step_weights: str = key("uniform", choices=("uniform", "noise"))
    """Weight of the objective at each step of the window. uniform: 1. noise: in proportion to the step's standard
    deviation, with mean 1 over the window (TempFlow); for objectives on transitions."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    reference_kl: ReferenceKLConfig = field(default_factory=ReferenceKLConfig)

    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)

    pool: PoolConfig = field(default_factory=PoolConfig)

    ties: str = key("keep", choices=("keep", "skip", "refill"))
    """Groups whose rewards spread by less than ``advantage.min_std``. keep: they stay in the mean of the loss and in
    the reference penalty. skip: they do not train (Flow-GRPO). refill: captions of the next batches take their places,
    as with verl's algorithm.filter_groups (DAPO's dynamic sampling), and those that are left do not train; not in the
    unified stage."""

    refill_batches: int = key(1, at_least=1)
    """ties=refill: batches that a step may draw besides its own, at least 1. Our choice; runs of DAPO: 9."""

    captions: CaptionSourceConfig = field(default_factory=CaptionSourceConfig)


def validate(config: DictConfig) -> None:
    """Check what can be checked without models.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    validate_training(config)
    u4g, drawn = config.uae.u4g, config.uae.decoder.guidance
    if u4g.sampler == "replica" and config.uae.train.fsdp_config.strategy != "fsdp2":
        raise ConfigError(
            "uae.u4g.sampler",
            f"replica needs uae.train.fsdp_config.strategy=fsdp2, got {config.uae.train.fsdp_config.strategy}",
        )
    _validate_objective(config)
    _validate_window(config)
    _validate_prefix(config)
    _validate_replay(config)
    _validate_pool(config)
    _validate_batches(config)
    if by_servers(config):
        _validate_servers(config)
    if u4g.guidance != drawn and (u4g.guidance == 1 or drawn == 1):
        raise ConfigError(
            "uae.decoder.guidance",
            f"{drawn} with uae.u4g.guidance={u4g.guidance}: a decoder trained without "
            "guidance must be drawn without, and the other way round",
        )


def caption_writer(config: DictConfig) -> str | None:
    """What writes the captions of stage u4g, ``ranks`` or ``server``; None where they come from elsewhere."""
    captions = config.uae.u4g.captions
    return str(captions.writer) if config.uae.stage == "u4g" and captions.source == "captioner" else None


def by_servers(config: DictConfig) -> bool:
    """Whether servers write the captions of stage u4g."""
    return caption_writer(config) == "server"


def pool_size(config: DictConfig) -> int:
    """Candidates of a caption."""
    u4g = config.uae.u4g
    return int(u4g.samples_per_caption if u4g.pool.size is None else u4g.pool.size)


def explored_captions(config: DictConfig) -> int:
    """Captions of a batch."""
    return int(config.data.train_batch_size) * captions_drawn(config)


def trained_captions(config: DictConfig) -> int:
    """Captions of a batch that are trained."""
    kept = config.uae.u4g.pool.keep_captions
    return explored_captions(config) if kept is None else int(kept)


def chooses(config: DictConfig) -> bool:
    """Whether candidates are drawn first, and some of them train."""
    u4g, captions = config.uae.u4g, explored_captions(config)
    return pool_size(config) > u4g.samples_per_caption or trained_captions(config) < captions or u4g.ties == "refill"


def drawn_pictures(config: DictConfig) -> tuple[int, int]:
    """Pictures that a step of U4G draws: candidates, and those that are drawn to be trained. Refills come besides."""
    candidates = explored_captions(config) * pool_size(config) if chooses(config) else 0
    trained = trained_captions(config) * int(config.uae.u4g.samples_per_caption)
    return candidates, 0 if candidates and config.uae.u4g.pool.steps is None else trained


def validate_engine(config: DictConfig) -> None:
    """Check that what writes the captions is installed on this machine.

    Raises:
        ConfigError: naming what to install, or to choose instead.
    """
    if by_servers(config) and config.actor_rollout_ref.rollout.name == "vllm" and find_spec("vllm") is None:
        raise ConfigError(
            "uae.u4g.captions.writer",
            "server needs vLLM (actor_rollout_ref.rollout.name=vllm), which is not installed here: install it (in a "
            'checkout: pip install ".[gpu]"), or use ranks',
        )


def chosen_objective(config: DictConfig) -> BoundObjective:
    """The objective of ``uae.u4g.objective`` with its parameters.

    Raises:
        ConfigError: of :func:`verl_uae.flow.objective.bind_objective`.
    """
    # Imported here: the schema is needed in places that must not pay for torch.
    from verl_uae.flow.objective import bind_objective

    settings = config.uae.u4g.objective
    params: Any = OmegaConf.to_container(settings.params, resolve=True)
    return bind_objective(settings.name, params, settings.path, kernel=config.uae.u4g.kernel)


def needs_reference(config: DictConfig) -> bool:
    """Whether an update asks the policy before RL for its velocities."""
    u4g = config.uae.u4g
    asked = "reference_velocity_BCHW" in chosen_objective(config).needs
    return bool(u4g.reference_kl.coef > 0 or u4g.objective.norm_guard > 0 or asked)


def reference_guidance(config: DictConfig) -> float:
    """Classifier-free guidance of the policy before RL, where it is asked."""
    own = config.uae.u4g.reference_kl.guidance
    return float(config.uae.u4g.guidance if own is None else own)


def _validate_objective(config: DictConfig) -> None:
    u4g = config.uae.u4g
    bound = chosen_objective(config)
    forward = bound.objective.kind == "forward"
    if forward != (u4g.kernel == "ode"):
        why = "is trained on ODE samples; use ode" if forward else "needs stochastic steps, ode has none"
        raise ConfigError("uae.u4g.kernel", f"{u4g.kernel}: the objective {u4g.objective.name} {why}")
    if forward and u4g.objective.num_sigmas > u4g.num_steps - 1:
        raise ConfigError("uae.u4g.objective.num_sigmas", f"a table of {u4g.num_steps} steps has fewer levels")
    if forward and u4g.reference_kl.coef > 0 and u4g.reference_kl.form not in FORWARD_FORMS:
        raise ConfigError(
            "uae.u4g.reference_kl.form", f"a forward-process objective takes {' or '.join(FORWARD_FORMS)}"
        )
    if not forward and u4g.objective.norm_guard > 0:
        raise ConfigError("uae.u4g.objective.norm_guard", f"{u4g.objective.name} is not on the forward process; use 0")
    if forward and u4g.step_weights != "uniform":
        raise ConfigError("uae.u4g.step_weights", f"{u4g.objective.name} trains no steps of a window; use uniform")
    if bound.grouped:
        _validate_groups(config)
    _validate_floor(config)


def _validate_groups(config: DictConfig) -> None:
    """An objective that compares the losses of a group needs losses that compare, and a group."""
    u4g = config.uae.u4g
    if u4g.objective.share == "none":
        raise ConfigError(
            "uae.u4g.objective.share",
            f"{u4g.objective.name} compares the losses of a group, which would differ by their noise levels: use "
            "levels or noise",
        )
    if u4g.samples_per_caption // u4g.updates_per_rollout < 2:
        raise ConfigError(
            "uae.u4g.updates_per_rollout",
            f"{u4g.updates_per_rollout} updates leave one of {u4g.samples_per_caption} samples of a group in each, and "
            f"{u4g.objective.name} compares them",
        )


def _validate_floor(config: DictConfig) -> None:
    penalty, clamp = config.uae.u4g.reference_kl, config.uae.u4g.advantage.clamp
    if penalty.floor is None:
        return
    if penalty.floor > penalty.coef:
        message = f"{penalty.floor} is above uae.u4g.reference_kl.coef={penalty.coef}"
        raise ConfigError("uae.u4g.reference_kl.floor", message)
    if clamp is None:
        message = "needs uae.u4g.advantage.clamp, the advantage of the best picture, which is null"
        raise ConfigError("uae.u4g.reference_kl.floor", message)


def _validate_servers(config: DictConfig) -> None:
    """Every rank belongs to one caption server."""
    rollout, ranks = config.actor_rollout_ref.rollout, config.trainer.n_gpus_per_node * config.trainer.nnodes
    size = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    if ranks % size:
        raise ConfigError(
            "actor_rollout_ref.rollout.tensor_model_parallel_size",
            f"a caption server takes {size} ranks, which must divide the {ranks} ranks that train the decoder "
            "(uae.u4g.captions.writer=server)",
        )
    if rollout.name == "vllm" and not rollout.free_cache_engine:
        raise ConfigError(
            "actor_rollout_ref.rollout.free_cache_engine",
            "must be true with uae.u4g.captions.writer=server: the servers would keep the decoder's memory",
        )


def _validate_window(config: DictConfig) -> None:
    """Whether a window fits; the shift of the noise levels may still come from the decoder folder."""
    from verl_uae.flow.plan import make_plan
    from verl_uae.flow.schedule import sigma_schedule

    u4g = config.uae.u4g
    shift = config.uae.decoder.shift
    sigmas = sigma_schedule(u4g.num_steps, 3.0 if shift is None else shift, u4g.table)
    try:
        make_plan(sigmas, u4g.kernel, u4g.noise_level, WindowConfig(**u4g.window), iteration=0, seed=0)
    except ValueError as error:
        raise ConfigError("uae.u4g.window", str(error)) from error


def _validate_prefix(config: DictConfig) -> None:
    """Members of a group have something in common only where they start from one noise, and differ only where steps
    have some."""
    u4g = config.uae.u4g
    if u4g.kernel == "ode" and u4g.share_noise:
        raise ConfigError(
            "uae.u4g.share_noise",
            f"with the ODE samples of the objective {u4g.objective.name} (uae.u4g.kernel=ode) and one initial noise "
            "all members of a group would be one picture, and of equal reward: use false",
        )
    if u4g.kernel == "ode" and u4g.shared_prefix:
        raise ConfigError(
            "uae.u4g.shared_prefix",
            f"the objective {u4g.objective.name} trains ODE samples, each of noise of its own, so there is nothing to "
            "share: use false",
        )
    if u4g.shared_prefix and not u4g.share_noise:
        raise ConfigError(
            "uae.u4g.shared_prefix",
            "with uae.u4g.share_noise=false every member starts from noise of its own, so there is nothing to share: "
            "set share_noise=true, or shared_prefix=false",
        )
    if u4g.shared_prefix and config.uae.train.micro_batch_size == 1:
        raise ConfigError(
            "uae.u4g.shared_prefix",
            "members of a micro-batch share, and with uae.train.micro_batch_size=1 each is alone: at least 2, or "
            "shared_prefix=false",
        )


def _validate_replay(config: DictConfig) -> None:
    """More places at once than are trained would be another number than was asked for."""
    u4g = config.uae.u4g
    steps = (
        (u4g.window.size, "uae.u4g.window.size") if u4g.window.mode != "all" else (u4g.num_steps, "uae.u4g.num_steps")
    )
    places, key = (u4g.objective.num_sigmas, "uae.u4g.objective.num_sigmas") if u4g.kernel == "ode" else steps
    most, alone = places, ""
    if u4g.shared_prefix:
        most, alone = max(1, places - 1), " and uae.u4g.shared_prefix=true, which gives the first a pass of its own"
    if u4g.replay_steps is not None and u4g.replay_steps > most:
        raise ConfigError(
            "uae.u4g.replay_steps",
            f"{u4g.replay_steps} places at once, but {key}={places}{alone}: at most {most}, or null for all",
        )


def _validate_pool(config: DictConfig) -> None:
    """There must be something to choose from, and something to choose by."""
    u4g, images, name = config.uae.u4g, config.data.train_batch_size, "uae.u4g.pool"
    if is_joint(config):
        _refuse_pool(config)
    if pool_size(config) < u4g.samples_per_caption:
        raise ConfigError(
            f"{name}.size",
            f"{u4g.pool.size} candidates are fewer than the uae.u4g.samples_per_caption={u4g.samples_per_caption} that "
            "train: as many at least, or null",
        )
    if u4g.pool.keep_captions is not None and u4g.pool.keep_captions > images:
        raise ConfigError(
            f"{name}.keep_captions",
            f"{u4g.pool.keep_captions} is more than data.train_batch_size={images}: as many at most, or null for all",
        )
    if u4g.ties == "refill" and config.uae.stage == "unified":
        instead = "skip" if is_joint(config) else f"skip, or {name}.keep_captions"
        raise ConfigError(
            "uae.u4g.ties",
            "refill needs captions in the middle of a step, when the unified stage's caption servers sleep: use "
            f"{instead}",
        )
    if u4g.pool.steps is None:
        return
    if u4g.pool.steps >= u4g.num_steps:
        raise ConfigError(
            f"{name}.steps",
            f"{u4g.pool.steps} steps are no preview of uae.u4g.num_steps={u4g.num_steps}: fewer, or null, which draws "
            "nothing twice",
        )
    if not chooses(config):
        raise ConfigError(
            f"{name}.steps",
            f"nothing is chosen by the previews: set {name}.size above uae.u4g.samples_per_caption="
            f"{u4g.samples_per_caption} or {name}.keep_captions, or use null",
        )
    if u4g.share_noise:
        raise ConfigError(
            f"{name}.steps",
            "previews take no stochastic steps, so with uae.u4g.share_noise=true those of a caption are all the same "
            "picture: use null, or noise of their own",
        )


def _refuse_pool(config: DictConfig) -> None:
    """Jointly the drawings of a caption are its reward too, which those that are chosen by their rewards would bend."""
    settings, every = config.uae.u4g.pool, config.uae.u4g.samples_per_caption
    why = "with uae.unified.schedule=joint every drawing trains and every caption is rewarded by its drawings"
    if settings.size is not None and settings.size > every:
        raise ConfigError(
            "uae.u4g.pool.size",
            f"{settings.size} candidates are more than the uae.u4g.samples_per_caption={every} that train: {why}; use "
            "null, or the schedule turns",
        )
    for name in ("steps", "keep_captions"):
        if settings[name] is not None:
            raise ConfigError(
                f"uae.u4g.pool.{name}", f"{settings[name]}: {why}, so none are chosen; use null, or the schedule turns"
            )


def _validate_batches(config: DictConfig) -> None:
    """Every rank needs the same number of equal micro-batches in every update."""
    u4g, ranks = config.uae.u4g, config.trainer.n_gpus_per_node * config.trainer.nnodes
    if u4g.samples_per_caption % u4g.updates_per_rollout:
        raise ConfigError(
            "uae.u4g.updates_per_rollout",
            f"{u4g.updates_per_rollout} must divide uae.u4g.samples_per_caption={u4g.samples_per_caption}",
        )
    captions = captions_drawn(config)
    images = trained_captions(config) // captions
    samples = images * captions * u4g.samples_per_caption // u4g.updates_per_rollout
    of_each = f"{captions} captions x {u4g.samples_per_caption}" if captions > 1 else u4g.samples_per_caption
    if samples % (ranks * config.uae.train.micro_batch_size):
        raise ConfigError(
            "uae.train.micro_batch_size",
            f"{config.uae.train.micro_batch_size} must divide the {samples / ranks:g} samples a rank has in an update "
            f"({images} images x {of_each} samples / "
            f"{u4g.updates_per_rollout} updates / {ranks} ranks)",
        )
