# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The package's workers around tiny real models on the CPU, under torch's own counter, and the command that describes
the same run.

Shape legend: C H W latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import AutoModelForImageTextToText
from verl.utils import tensordict_utils as tu

from tests.real_size import models, workers
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.draw import Painter
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.names import VAE
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.lora import add_lora
from verl_uae.estimate.composing import Command, command
from verl_uae.families import family_of
from verl_uae.reward.registry import get_reward
from verl_uae.reward.scorer import RewardScorer
from verl_uae.stages.cold_start.captioner import LANGUAGE_MODEL, CaptionerModule
from verl_uae.stages.cold_start.loss import CaptionInputs, ReconstructionLoss, ReconstructionSettings, recompute
from verl_uae.stages.common.build import EMA, painter_settings
from verl_uae.stages.pretrain.worker import FlowMatching, build_pair_encoder, density
from verl_uae.stages.u4g.config import chosen_objective


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """torch's own formula takes a grouped convolution for a whole one; by hand: an output number has as many products
    as a filter has weights, and each gradient needs them once."""
    products = weight[1] * math.prod(weight[2:])
    outputs = math.prod(x[:1]) * weight[0] * math.prod(gradient[2:])
    return 2 * products * outputs * sum(args[7][:2])


_ATEN = torch.ops.aten
#: torch knows the operations of a GPU's attention, not of a CPU's, which are the same.
_FORMULAS: dict[Any, Any] = {
    _ATEN.convolution_backward: _convolution_backward,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
for _formula in list(_FORMULAS.values())[1:]:
    # They take tensors, not shapes.
    _formula._get_raw = True


def counted(call: Callable[[], object]) -> float:
    """Operations of a call by torch's counter."""
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with counter:
        call()
    return float(counter.get_total_flops())


def asked(stage: str, root: Path, *overrides: str) -> Command:
    """The command of a stage on the tiny models of a folder with ``decoder/``, ``language_model/``, ``captioner/``."""
    paths = {"uae.decoder.path": "decoder", "actor_rollout_ref.model.path": "captioner"}
    language = root / "language_model"
    paths["uae.conditioner.path"] = "language_model" if language.is_dir() else "captioner"
    words = [f"{key}={root / name}" for key, name in paths.items()]
    fixed = ["hardware=cpu", "uae.reward.terms=[{name: pixel}]", "data.max_response_length=32"]
    return command(f"uae_{stage}", [*fixed, *words, *overrides])


def policy_module(asked: Command) -> DecoderModule:
    """What is trained, on the CPU, as the engine builds it."""
    train = asked.config.uae.train
    module = DecoderModule.from_pretrained(
        asked.config.uae.decoder.path, gradient_checkpointing=train.gradient_checkpointing
    )
    module.train_parts(transformer=True, projector=train.train_projector)
    if train.lora.rank:
        targets, frozen = module.family.lora_targets, module.family.frozen
        add_lora(module, rank=train.lora.rank, alpha=train.lora.alpha, target_modules=targets, frozen=frozen)
    return module


def painter(asked: Command) -> Painter:
    """Draws with the run's own language model and VAE."""
    config, uae = asked.config, asked.config.uae
    family = family_of(uae.decoder.path, length=uae.conditioner.length, role=uae.conditioner.role)
    conditioner = Conditioner.from_pretrained(uae.conditioner.path, family)
    vae = load_model(family.components[VAE], uae.decoder.path, subfolder=VAE)
    scorer = RewardScorer([("pixel", 1.0, {})], held_out=[], source_cache_bytes=0, timeout_s=300.0)
    settings = painter_settings(config, family, uae.train.micro_batch_size)
    return Painter(ConditionCache(conditioner, 64), vae, scorer, settings, "cpu")


def policy_worker(asked: Command, shadows: tuple[str, ...] = ()) -> Any:
    """One rank of U4G as ``init_model`` leaves it, without FSDP."""
    worker = object.__new__(workers.PolicyWorker)
    engine = models.engine(models.PolicyEngine, policy_module(asked), shadows=shadows)
    workers._place(worker, asked.config, engine)
    worker.painter = painter(asked)
    worker.objective = worker.loss_fn = chosen_objective(asked.config)
    worker.captions, worker.replica, worker._rollout = None, None, None
    worker.family = worker.painter.family
    return worker


def pair_worker(asked: Command) -> Any:
    """One rank of pre-training as ``init_model`` leaves it, without FSDP."""
    worker = object.__new__(workers.PairWorker)
    engine = models.engine(models.PairEngine, policy_module(asked), shadows=(EMA,))
    workers._place(worker, asked.config, engine)
    worker.painter = painter(asked)
    worker.family = worker.painter.family
    worker.density = density(asked.config, worker.family)
    worker.loss_fn = FlowMatching(worker.density)
    worker.encoder = build_pair_encoder(asked.config, worker.painter)
    return worker


def cold_start(asked: Command, caption: str, tokens: int, clip: str) -> tuple[Any, TensorDict, Any]:
    """The loss of the cold start, its mini-batch of two pairs, and the decoder's engine."""
    settings = asked.config.uae.cold_start
    drawn = painter(asked)
    family = drawn.family
    recompute(drawn.vae.requires_grad_(False))
    captioner = CaptionerModule(load_model(AutoModelForImageTextToText, asked.config.actor_rollout_ref.model.path))
    captioner.requires_grad_(False)
    lora = settings.captioner.lora
    add_lora(captioner, rank=lora.rank, alpha=lora.alpha, target_modules=list(lora.target_modules), part=LANGUAGE_MODEL)
    captioner.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    captioner.train()
    vision = captioner.config.vision_config
    side = round(256 / (vision.patch_size * 2)) * 2
    image = side * side // 4
    ids_BT = torch.full((2, image + 77 + tokens), 1)
    ids_BT[:, 4 : 4 + image] = captioner.config.image_token_id
    answer_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    answer_BT[:, -tokens:] = True
    pictures = {
        "pixel_values": torch.zeros(2 * side * side, 3 * vision.temporal_patch_size * vision.patch_size**2),
        "image_grid_thw": torch.tensor([[1, side, side]] * 2),
        "mm_token_type_ids": (ids_BT == captioner.config.image_token_id).long(),
    }
    inputs = CaptionInputs(ids_BT, torch.ones_like(ids_BT).bool(), answer_BT, pictures)
    uae = asked.config.uae
    features: Any = get_reward("clip", "uae.cold_start.backbone")(model=clip)
    negative = drawn.conditions.negative(uae.decoder.negative_prompt)
    loss = ReconstructionLoss(
        ReconstructionSettings(
            family.sigmas(settings.num_steps, uae.decoder.height, uae.decoder.width),
            settings.guidance,
            gradient_steps=None,
            kept_steps=settings.kept_steps,
            semantic_weight=1.0,
            caption_weight=1.0,
            in_context=False,
            vae_batch_size=uae.decoder.vae_batch_size,
        ),
        family,
        drawn.vae,
        features,
        captioner,
        lambda rows: inputs,
        lambda: negative,
    )
    fields = {
        **drawn.conditions.conditioner.tokenize([caption] * 2).stored(),
        "noise_BCHW": torch.zeros(2, *family.latent_shape(uae.decoder.height, uae.decoder.width)),
        "source_B3HW": torch.zeros(2, 3, uae.decoder.height, uae.decoder.width),
        "row_B": torch.arange(2),
        "weight_B": torch.ones(2),
    }
    data = TensorDict(fields, batch_size=2)
    tu.assign_non_tensor(data, total_weight=2.0, micro_batch_size_per_gpu=2)
    module = policy_module(asked).train()
    return loss, data, models.engine(models.PairEngine, module)
