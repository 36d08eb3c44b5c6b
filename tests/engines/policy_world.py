# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny engines and mini-batches of the decoder policy, for processes with VERL_PLATFORM=cpu and a gloo group.

Shape legend: B samples, K steps of the window, L text positions, E language-model width, C H W latent.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig

from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_batch import stored
from verl_uae.engines.decoder_module import DecoderModelConfig
from verl_uae.families.family import Condition
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.trajectory import sample_trajectory
from verl_uae.scenes.codec import LATENT_CHANNELS, LATENT_SIZE
from verl_uae.scenes.tiny_models import CONDITION_LENGTH, HIDDEN_SIZE
from verl_uae.seeding import normal

LATENT = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
PLAN = SamplingPlan(tuple(sigma_schedule(5).tolist()), "cps", 0.8, (1, 2))


def build_engine(
    decoder: str, *, precision: str = "fp32", lr: float = 1e-3, fsdp: dict[str, Any] | None = None, **model: Any
) -> DecoderEngine:
    """An initialised engine; ``fsdp`` are fields of FSDPEngineConfig and ``model`` of DecoderModelConfig."""
    mixed = {"param_dtype": precision, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    settings = {"strategy": "fsdp2", "use_torch_compile": False, "use_remove_padding": False, **(fsdp or {})}
    engine_config = FSDPEngineConfig(mixed_precision=mixed, **settings)
    engine = DecoderEngine(
        model_config=DecoderModelConfig(path=decoder, **model),
        engine_config=engine_config,
        optimizer_config=FSDPOptimizerConfig(lr=lr, weight_decay=0.01, total_training_steps=50),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def states(rows: range | list[int]) -> Condition:
    """Conditions of the samples with these numbers."""
    return Condition.whole(torch.cat([normal((1, CONDITION_LENGTH, HIDDEN_SIZE), "states", row) for row in rows]))


def sampled(
    engine: DecoderEngine, rows: range | list[int], *, micro: int, total: float, plan: SamplingPlan = PLAN
) -> TensorDict:
    """A mini-batch of these samples, drawn by the engine's own weights, micro-batch by micro-batch."""
    parts = []
    with engine.eval_mode(), torch.no_grad():
        for start in range(0, len(rows), micro):
            some = rows[start : start + micro]
            field = engine.field(states(some), negative(), plan.guidance)
            noise = torch.cat([normal((1, *LATENT), "noise", row) for row in some])
            parts.append(
                sample_trajectory(
                    field,
                    noise,
                    plan,
                    lambda i, some=some: torch.cat([normal((1, *LATENT), "step", i, row) for row in some]),
                )
            )
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("x_BKCHW", "x_next_BKCHW", "mean_BKCHW", "log_prob_BK")
    }
    fields = {
        **stored(states(rows)),
        "weight_B": torch.ones(len(rows)),
        "advantage_B": torch.cat([normal((1,), "advantage", row) for row in rows]),
        "x_BKCHW": joined["x_BKCHW"],
        "x_next_BKCHW": joined["x_next_BKCHW"],
        "old_log_prob_BK": joined["log_prob_BK"],
        "old_mean_BKCHW": joined["mean_BKCHW"],
    }
    return minibatch(fields, micro=micro, total=total, plan=plan)


def negative() -> Condition:
    """Condition of the unconditional branch."""
    return Condition.whole(normal((1, CONDITION_LENGTH, HIDDEN_SIZE), "negative"))


def minibatch(
    fields: dict[str, torch.Tensor], *, micro: int, total: float, plan: SamplingPlan = PLAN, **extra: Any
) -> TensorDict:
    """Pack tensors and the non-tensor entries the engine wants."""
    data = TensorDict(fields, batch_size=len(fields["weight_B"]))
    tu.assign_non_tensor(
        data,
        plan=plan.to_dict(),
        plan_digest=plan.digest,
        micro_batch_size_per_gpu=micro,
        total_weight=total,
        negative=negative(),
        **extra,
    )
    return data


def parameters(engine: DecoderEngine) -> dict[str, torch.Tensor]:
    """Full copies of the trainable parameters."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in engine.module.named_parameters()
        if p.requires_grad
    }


def gradients(engine: DecoderEngine) -> dict[str, torch.Tensor]:
    """Full copies of the gradients there are."""
    return {
        name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).detach().clone()
        for name, p in engine.module.named_parameters()
        if p.grad is not None
    }
