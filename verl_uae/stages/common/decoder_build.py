# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the parts of the decoder policy from the composed configuration."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL
from omegaconf import DictConfig, OmegaConf
from verl.trainer.config import CheckpointConfig
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig

from verl_uae.chain.codec import latent_shape
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.conditions import ConditionCache
from verl_uae.chain.draw import PolicyRollout, PolicyRolloutSettings
from verl_uae.checkpoints.load import load_model, load_scheduler
from verl_uae.engines.decoder_config import MODEL_TYPE, PolicyModelConfig
from verl_uae.flow.objective import bind_objective
from verl_uae.flow.objective.registry import BoundObjective
from verl_uae.flow.plan import SamplingPlan, make_plan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.window import WindowSettings
from verl_uae.reward.build import build_scorer, has_groupwise
from verl_uae.stages.common.build import DTYPES
from verl_uae.stages.common.captions import CaptionSettings, EncoderCaptions, PromptSettings

#: Weight copies of the engine.
EMA, OLD = "ema", "old"


def objective(config: DictConfig) -> BoundObjective:
    """The objective of ``uae.policy.objective``."""
    policy = config.uae.policy
    params: Any = OmegaConf.to_container(policy.objective.params, resolve=True)
    return bind_objective(policy.objective.name, params, policy.objective.path, kernel=policy.kernel)


def worker_config(config: DictConfig, total_steps: int) -> TrainingWorkerConfig:
    """What verl's training worker needs to train the decoder as a policy.

    Args:
        config: the whole composed configuration.
        total_steps: policy steps of the run, for the learning-rate schedule.
    """
    policy = config.uae.policy
    shadows = [EMA] if policy.ema.decay > 0 else []
    if objective(config).objective.kind == "forward":
        shadows.append(OLD)
    reference = policy.reference_kl.coef > 0
    return training_worker_config(config, total_steps, MODEL_TYPE, shadows=shadows, keep_reference=reference)


def training_worker_config(
    config: DictConfig,
    total_steps: int,
    model_type: str,
    *,
    shadows: list[str],
    keep_reference: bool = False,
    train_transformer: bool = True,
) -> TrainingWorkerConfig:
    """What verl's training worker needs to train the decoder.

    Args:
        config: the whole composed configuration.
        total_steps: steps of the run that train the decoder, for the learning-rate schedule.
        model_type: selects the engine.
        shadows: weight copies to keep.
        keep_reference: keep the weights before training too.
        train_transformer: train the MM-DiT as ``uae.policy.lora`` says.
    """
    policy = config.uae.policy
    model = PolicyModelConfig(
        path=config.uae.decoder.path,
        model_type=model_type,
        lora_rank=policy.lora.rank if train_transformer else 0,
        lora_alpha=policy.lora.alpha,
        lora_target_modules=list(policy.lora.target_modules),
        lora_seed=config.uae.seed,
        train_transformer=train_transformer,
        train_projector=policy.train_projector,
        enable_gradient_checkpointing=policy.gradient_checkpointing,
        shadows=shadows,
        keep_reference=keep_reference,
    )
    contents = [name for name in policy.save_contents if name != "diffusers"]
    optim = OmegaConf.merge(policy.optim, {"total_training_steps": total_steps})
    return TrainingWorkerConfig(
        model_type=model_type,
        model_config=model,
        engine_config=omega_conf_to_dataclass(policy.fsdp_config),
        optimizer_config=omega_conf_to_dataclass(optim),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )


def decoder_shift(config: DictConfig) -> float:
    """Timestep shift: of the configuration, else of the decoder's scheduler."""
    if config.uae.decoder.shift is not None:
        return float(config.uae.decoder.shift)
    return float(load_scheduler(config.uae.decoder.path).config.shift)


def sampling_plan(config: DictConfig, shift: float, iteration: int) -> SamplingPlan:
    """The plan of a batch.

    Args:
        config: the whole composed configuration.
        shift: timestep shift.
        iteration: number of the policy batch, from 0.
    """
    policy = config.uae.policy
    return make_plan(
        sigma_schedule(policy.num_steps, shift, policy.table),
        policy.kernel,
        policy.noise_level,
        WindowSettings(**policy.window),
        iteration=iteration,
        seed=config.uae.seed,
        guidance=policy.guidance,
        reduction=policy.reduction,
    )


def build_captions(config: DictConfig, device: str) -> EncoderCaptions | None:
    """The frozen captioner of stage u4g; None where captions come from elsewhere."""
    captions = config.uae.policy.captions
    if config.uae.stage != "u4g" or captions.source != "encoder":
        return None
    settings = CaptionSettings(
        seed=config.uae.seed,
        prompt_length=config.data.max_prompt_length,
        response_length=config.data.max_response_length,
        do_sample=captions.do_sample,
        temperature=captions.temperature,
        batch_size=captions.batch_size,
        prompt=PromptSettings(
            config.actor_rollout_ref.model.get("custom_chat_template"),
            dict(config.data.get("apply_chat_template_kwargs") or {}),
            dict(config.data.get("mm_processor_kwargs") or {}),
        ),
    )
    path = config.actor_rollout_ref.model.path
    return EncoderCaptions(path, settings, dtype=DTYPES[captions.dtype], device=device)


def build_rollout(config: DictConfig, captions: EncoderCaptions | None, transformer: Any, device: str) -> PolicyRollout:
    """Everything but the policy itself.

    Args:
        config: the whole composed configuration.
        captions: a captioner whose language model may serve as conditioner too.
        transformer: the policy's transformer config.
        device: where pictures are drawn.
    """
    uae = config.uae
    same = captions is not None and uae.conditioner.path == config.actor_rollout_ref.model.path
    if captions is not None and same and uae.conditioner.dtype == uae.policy.captions.dtype:
        conditioner = captions.shared_conditioner(length=uae.conditioner.length, role=uae.conditioner.role)
    else:
        conditioner = Conditioner.from_pretrained(
            uae.conditioner.path,
            length=uae.conditioner.length,
            role=uae.conditioner.role,
            dtype=DTYPES[uae.conditioner.dtype],
            device=device,
        )
    vae = load_model(AutoencoderKL, uae.decoder.path, subfolder="vae").to(device)
    settings = PolicyRolloutSettings(
        seed=uae.seed,
        height=uae.decoder.height,
        width=uae.decoder.width,
        latent_shape=latent_shape(vae.config, transformer, uae.decoder.height, uae.decoder.width),
        micro_batch_size=uae.policy.micro_batch_size,
        decode_batch_size=uae.decoder.batch_size,
        vae_batch_size=uae.decoder.vae_batch_size,
        share_noise=uae.policy.share_noise,
        negative_prompt=uae.decoder.negative_prompt,
        keep_reconstructions=has_groupwise(config),
    )
    conditions = ConditionCache(conditioner, uae.policy.captions.condition_cache_size)
    return PolicyRollout(conditions, vae.requires_grad_(False), build_scorer(config, device), settings, device)
