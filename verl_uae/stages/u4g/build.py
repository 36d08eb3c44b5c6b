# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Builds what only the decoder as a policy needs from the composed configuration."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.workers.config import TrainingWorkerConfig

from verl_uae.engines.decoder_module import MODEL_TYPE
from verl_uae.flow.config import WindowConfig
from verl_uae.flow.objective import bind_objective
from verl_uae.flow.objective.registry import BoundObjective
from verl_uae.flow.plan import SamplingPlan, make_plan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.stages.common.build import DTYPES, EMA, training_worker_config
from verl_uae.stages.common.captions import CaptionSettings, EncoderCaptions, PromptSettings

#: Weight copy of the engine: the policy that sampled.
OLD = "old"


def objective(config: DictConfig) -> BoundObjective:
    """The objective of ``uae.u4g.objective``."""
    settings = config.uae.u4g.objective
    params: Any = OmegaConf.to_container(settings.params, resolve=True)
    return bind_objective(settings.name, params, settings.path, kernel=config.uae.u4g.kernel)


def worker_config(config: DictConfig, total_steps: int) -> TrainingWorkerConfig:
    """What verl's training worker needs to train the decoder as a policy.

    Args:
        config: the whole composed configuration.
        total_steps: policy steps of the run, for the learning-rate schedule.
    """
    shadows = [EMA] if config.uae.train.ema.decay > 0 else []
    if objective(config).objective.kind == "forward":
        shadows.append(OLD)
    reference = config.uae.u4g.reference_kl.coef > 0
    return training_worker_config(config, total_steps, MODEL_TYPE, shadows=shadows, keep_reference=reference)


def sampling_plan(config: DictConfig, shift: float, iteration: int) -> SamplingPlan:
    """The plan of a batch.

    Args:
        config: the whole composed configuration.
        shift: timestep shift.
        iteration: number of the policy batch, from 0.
    """
    u4g = config.uae.u4g
    return make_plan(
        sigma_schedule(u4g.num_steps, shift, u4g.table),
        u4g.kernel,
        u4g.noise_level,
        WindowConfig(**u4g.window),
        iteration=iteration,
        seed=config.uae.seed,
        guidance=u4g.guidance,
        reduction=u4g.reduction,
    )


def build_captions(config: DictConfig, device: str) -> EncoderCaptions | None:
    """The frozen captioner of stage u4g; None where captions come from elsewhere."""
    captions = config.uae.u4g.captions
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
