# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training, and the loss of the cold start."""

from __future__ import annotations

import io
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from benchmarks.sizes import Size
from tests.real_size import models, workers
from tests.real_size.accelerator import Accelerator
from verl_uae.data.pairs import Pair
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.families.family import Condition
from verl_uae.families.text import Tokens, tap_states
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward.registry import get_reward
from verl_uae.stages.cold_start.loss import CaptionInputs, ReconstructionLoss, ReconstructionSettings
from verl_uae.stages.common.build import EMA


def pair() -> Pair:
    buffer = io.BytesIO()
    models.photograph().save(buffer, "PNG")
    return Pair(buffer.getvalue(), "a red circle", None, 512, 512, "file", 0)


def trained(module: DecoderModule) -> bool:
    return all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)


def test_pairs_are_encoded_and_all_weights_trained_on_the_device(
    size: Size, clip: str, accelerator: Accelerator, one_rank: Any, compose
) -> None:
    config = compose("uae.decoder.path=decoder", "uae.train.micro_batch_size=2", name="uae_pretrain")
    module = models.policy_module(size)
    worker = workers.pair_worker(config, size, clip, module, shadows=(EMA,))
    with accelerator:
        metrics, problems = worker.learn([pair()] * 4, (512, 512), 100)
    assert trained(module) and metrics["valid"] == [4.0] and problems == []
    updating = {place: count for place, count in accelerator.syncs.items() if place.startswith("engines/")}
    assert sum(updating.values()) <= 2, "the loss and the figures of an update"
    assert accelerator.frozen_bytes_to_host == 0


class Captioner(torch.nn.Module):
    """The part of the captioner's module that gives states."""

    def __init__(self, language_model: torch.nn.Module) -> None:
        super().__init__()
        self.language_model = language_model
        self.config: Any = language_model.config

    def forward(self, tokens: Tokens, *, taps: tuple[int, ...]) -> torch.Tensor:
        return tap_states(self.language_model, tokens, taps, "meta")


def no_captions(rows: Any) -> CaptionInputs:
    raise AssertionError("the caption term has no weight")


def test_the_gradient_of_the_picture_reaches_captioner_and_decoder_on_the_device(
    size: Size, clip: str, accelerator: Accelerator, one_rank: Any
) -> None:
    conditioner, codec = models.conditioner(size), models.vae()
    codec.enable_gradient_checkpointing()
    module = models.policy_module(size)
    module.transformer.enable_gradient_checkpointing()
    engine = models.engine(models.PairEngine, module)
    captioner = Captioner(conditioner.language_model.requires_grad_(True).train())
    features: Any = get_reward("clip", "uae.cold_start.backbone")(model=clip)
    features.to(torch.device("meta"))
    shape = (1, models.TEXT_TOKENS, size.language.hidden)
    loss = ReconstructionLoss(
        ReconstructionSettings(sigma_schedule(2, 3.0), 5.0, None, 0, 1.0, 0.0, False, 2),
        models.family(module, codec),
        codec,
        features,
        captioner,
        no_captions,
        lambda: Condition.whole(torch.zeros(shape, dtype=torch.bfloat16, device="meta")),
    )
    fields = {
        **conditioner.tokenize(["a red circle"] * 2).stored(),
        "noise_BCHW": torch.zeros(2, 16, 64, 64),
        "source_B3HW": torch.zeros(2, 3, 512, 512),
        "row_B": torch.arange(2),
        "weight_B": torch.ones(2),
    }
    data = TensorDict(fields, batch_size=2)
    tu.assign_non_tensor(data, total_weight=2.0, micro_batch_size_per_gpu=2)
    module.train()
    with accelerator:
        output = engine.forward_backward_batch(data, loss)
    assert trained(module) and len(output["loss"]) == 1
    assert captioner.language_model.layers[0].self_attn.q_proj.weight.grad is not None  # type: ignore[index, union-attr]
    updating = {place: count for place, count in accelerator.syncs.items() if place.startswith("engines/")}
    assert sum(updating.values()) <= 2, accelerator.syncs
