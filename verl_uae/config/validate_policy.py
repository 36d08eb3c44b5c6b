# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses impossible settings of the decoder as a policy: ``uae.policy`` and ``uae.unified``."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.config.checks import check_choices, check_minimum
from verl_uae.errors import ConfigError

_CHOICES = {
    "uae.policy.sampler": ("live", "replica"),
    "uae.policy.table": ("even", "terminal", "double_shift"),
    "uae.policy.kernel": ("ode", "flow_sde", "cps", "dance"),
    "uae.policy.reduction": ("mean", "raw"),
    "uae.policy.window.mode": ("random", "fixed", "progressive", "all"),
    "uae.policy.reference_kl.form": ("exact", "flow_grpo", "velocity", "x0"),
    "uae.policy.advantage.std": ("group", "global", "none"),
    "uae.policy.captions.source": ("encoder", "column"),
    "uae.policy.captions.dtype": ("float32", "float16", "bfloat16"),
    "uae.unified.first": ("g4u", "u4g"),
}
_TRAINING_CHOICES = {"uae.policy.fsdp_config.strategy": ("fsdp", "fsdp2")}
_TRAINING_MINIMUM = {
    "uae.policy.micro_batch_size": (1, True),
    "uae.policy.lora.rank": (0, True),
    "uae.policy.lora.alpha": (1, True),
    "uae.policy.ema.decay": (0, True),
    "uae.policy.ema.every": (1, True),
}
_MINIMUM = {
    "uae.policy.num_steps": (2, True),
    "uae.policy.noise_level": (0, True),
    "uae.policy.window.size": (1, True),
    "uae.policy.window.low": (0, True),
    "uae.policy.window.stride": (1, True),
    "uae.policy.window.every": (1, True),
    "uae.policy.window.min_sigma_next": (0, True),
    "uae.policy.window.min_std": (0, True),
    "uae.policy.window.max_gain": (0, False),
    "uae.policy.guidance": (1, True),
    "uae.policy.samples_per_caption": (2, True),
    "uae.policy.updates_per_rollout": (1, True),
    "uae.policy.objective.num_sigmas": (1, True),
    "uae.policy.objective.old_decay": (0, True),
    "uae.policy.reference_kl.coef": (0, True),
    "uae.policy.advantage.min_std": (0, True),
    "uae.policy.captions.temperature": (0, False),
    "uae.policy.captions.batch_size": (1, True),
    "uae.policy.captions.cache_size": (1, True),
    "uae.policy.captions.condition_cache_size": (1, True),
    "uae.unified.g4u_steps": (1, True),
    "uae.unified.u4g_steps": (1, True),
}
_CONTENTS = ("model", "optimizer", "extra", "diffusers")


def validate_policy(config: DictConfig) -> None:
    """Check what can be checked without models.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    validate_decoder_training(config)
    check_choices(config, _CHOICES)
    check_minimum(config, _MINIMUM)
    if config.uae.stage == "unified" and config.uae.policy.captions.source == "column":
        raise ConfigError(
            "uae.policy.captions.source",
            "column: in the unified stage captions are the trained captioner's; use encoder",
        )
    _validate_objective(config)
    _validate_window(config)
    _validate_batches(config)
    policy = config.uae.policy
    if config.uae.stage == "unified" and policy.captions.do_sample:
        served = config.actor_rollout_ref.rollout.temperature
        if policy.captions.temperature != served:
            raise ConfigError(
                "uae.policy.captions.temperature",
                f"{policy.captions.temperature}: in the unified stage the caption server samples at "
                f"actor_rollout_ref.rollout.temperature={served}",
            )
    if policy.objective.old_decay >= 1:
        raise ConfigError("uae.policy.objective.old_decay", "must be below 1: the old policy would never move")
    if policy.advantage.clamp is not None and policy.advantage.clamp <= 0:
        raise ConfigError("uae.policy.advantage.clamp", f"must be above 0 or null, got {policy.advantage.clamp}")
    if policy.guidance != config.uae.decoder.guidance and (policy.guidance == 1 or config.uae.decoder.guidance == 1):
        raise ConfigError(
            "uae.decoder.guidance",
            f"{config.uae.decoder.guidance} with uae.policy.guidance={policy.guidance}: a decoder trained without "
            "guidance must be drawn without, and the other way round",
        )


def validate_decoder_training(config: DictConfig) -> None:
    """Check what every stage that trains the decoder takes from ``uae.policy``.

    Raises:
        ConfigError: naming the first key that is impossible.
    """
    _validate_backend(config)
    check_choices(config, _TRAINING_CHOICES)
    check_minimum(config, _TRAINING_MINIMUM)
    policy = config.uae.policy
    if policy.ema.decay >= 1:
        raise ConfigError(
            "uae.policy.ema.decay", f"must be below 1, got {policy.ema.decay}: the average would never move"
        )
    for name in policy.save_contents:
        if name not in _CONTENTS:
            raise ConfigError("uae.policy.save_contents", f"{name!r} is none of {', '.join(_CONTENTS)}")


def _validate_backend(config: DictConfig) -> None:
    strategy = OmegaConf.select(config, "uae.policy.fsdp_config.strategy")
    if strategy == "megatron":
        raise ConfigError("uae.policy.fsdp_config.strategy", "verl has no MM-DiT on Megatron; use fsdp2")
    target = str(config.uae.policy.fsdp_config.get("_target_", ""))
    if target and not target.endswith(".FSDPEngineConfig"):
        raise ConfigError(
            "uae.policy.fsdp_config", f"is of {target.rpartition('.')[2]}: verl has an MM-DiT on FSDP alone; use fsdp"
        )
    if config.uae.stage != "unified" and config.actor_rollout_ref.actor.strategy == "megatron":
        raise ConfigError("model_engine", "megatron has no MM-DiT in verl, and this stage trains nothing else; use dp")
    if config.uae.policy.sampler == "replica" and strategy != "fsdp2":
        raise ConfigError("uae.policy.sampler", f"replica needs uae.policy.fsdp_config.strategy=fsdp2, got {strategy}")
    if config.uae.policy.fsdp_config.get("ulysses_sequence_parallel_size", 1) != 1:
        raise ConfigError("uae.policy.fsdp_config.ulysses_sequence_parallel_size", "an MM-DiT has no such split; use 1")


def _validate_objective(config: DictConfig) -> None:
    # Imported here: the schema is needed in places that must not pay for torch.
    from verl_uae.flow.objective import bind_objective

    policy = config.uae.policy
    params: Any = OmegaConf.to_container(policy.objective.params, resolve=True)
    bound = bind_objective(policy.objective.name, params, policy.objective.path, kernel=policy.kernel)
    forward = bound.objective.kind == "forward"
    if forward != (policy.kernel == "ode"):
        why = "is trained on ODE samples; use ode" if forward else "needs stochastic steps, ode has none"
        raise ConfigError("uae.policy.kernel", f"{policy.kernel}: the objective {policy.objective.name} {why}")
    if forward and policy.objective.num_sigmas > policy.num_steps - 1:
        raise ConfigError("uae.policy.objective.num_sigmas", f"a table of {policy.num_steps} steps has fewer levels")
    if forward and policy.reference_kl.coef > 0 and policy.reference_kl.form not in ("velocity", "x0"):
        raise ConfigError("uae.policy.reference_kl.form", "a forward-process objective takes velocity or x0")


def _validate_window(config: DictConfig) -> None:
    """Whether a window fits; the shift of the noise levels may still come from the decoder folder."""
    from verl_uae.flow.plan import make_plan
    from verl_uae.flow.schedule import sigma_schedule
    from verl_uae.flow.window import WindowSettings

    policy = config.uae.policy
    shift = config.uae.decoder.shift
    sigmas = sigma_schedule(policy.num_steps, 3.0 if shift is None else shift, policy.table)
    try:
        make_plan(sigmas, policy.kernel, policy.noise_level, WindowSettings(**policy.window), iteration=0, seed=0)
    except ValueError as error:
        raise ConfigError("uae.policy.window", str(error)) from error


def _validate_batches(config: DictConfig) -> None:
    """Every rank needs the same number of equal micro-batches in every update."""
    policy, ranks = config.uae.policy, config.trainer.n_gpus_per_node * config.trainer.nnodes
    if policy.samples_per_caption % policy.updates_per_rollout:
        raise ConfigError(
            "uae.policy.updates_per_rollout",
            f"{policy.updates_per_rollout} must divide uae.policy.samples_per_caption={policy.samples_per_caption}",
        )
    samples = config.data.train_batch_size * policy.samples_per_caption // policy.updates_per_rollout
    if samples % (ranks * policy.micro_batch_size):
        raise ConfigError(
            "uae.policy.micro_batch_size",
            f"{policy.micro_batch_size} must divide the {samples / ranks:g} samples a rank has in an update "
            f"({config.data.train_batch_size} images x {policy.samples_per_caption} samples / "
            f"{policy.updates_per_rollout} updates / {ranks} ranks)",
        )
