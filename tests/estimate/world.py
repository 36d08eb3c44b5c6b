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
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.real_size import models, workers
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.chain.draw import Painter
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.names import VAE
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.engines.lora import add_lora
from verl_uae.estimate.composing import Command, command
from verl_uae.families import family_of
from verl_uae.reward.scorer import RewardScorer
from verl_uae.stages.common.build import painter_settings
from verl_uae.stages.u4g.worker import objective


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """torch's own formula takes a grouped convolution for a whole one; by hand: an output number has as many products
    as a filter has weights, and each gradient needs them once."""
    products = weight[1] * math.prod(weight[2:])
    outputs = math.prod(x[:1]) * weight[0] * math.prod(gradient[2:])
    return 2 * products * outputs * sum(args[7][:2])


def counted(call: Callable[[], object]) -> float:
    """Operations of a call by torch's counter, attention in its parts, which it knows on a CPU."""
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    with sdpa_kernel(SDPBackend.MATH), counter:
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
    worker.objective = worker.loss_fn = objective(asked.config)
    worker.captions, worker.replica, worker._rollout = None, None, None
    worker.family = worker.painter.family
    return worker


def pair_worker(asked: Command) -> Any:
    """One rank of pre-training as ``init_model`` leaves it, without FSDP."""
    from verl_uae.stages.common.build import EMA
    from verl_uae.stages.pretrain.worker import FlowMatching, build_pair_encoder, density

    worker = object.__new__(workers.PairWorker)
    engine = models.engine(models.PairEngine, policy_module(asked), shadows=(EMA,))
    workers._place(worker, asked.config, engine)
    worker.painter = painter(asked)
    worker.family = worker.painter.family
    worker.density = density(asked.config, worker.family)
    worker.loss_fn = FlowMatching(worker.density)
    worker.encoder = build_pair_encoder(asked.config, worker.painter)
    return worker


def on_cpu(monkeypatch: Any) -> None:
    """All that ask verl for the device are told the CPU."""
    import importlib
    import sys

    for stage in ("cold_start.worker", "g4u.decoder_worker", "pretrain.worker", "u4g.worker"):
        importlib.import_module(f"verl_uae.stages.{stage}")
    for name, module in list(sys.modules.items()):
        if name.startswith("verl_uae."):
            for question in ("get_device_id", "get_device_name"):
                if hasattr(module, question):
                    monkeypatch.setattr(module, question, lambda: "cpu")
            if hasattr(module, "get_torch_device"):
                monkeypatch.setattr(module, "get_torch_device", lambda: SimpleNamespace(empty_cache=lambda: None))


def zeros(*shape: int) -> Tensor:
    """On the CPU."""
    return torch.zeros(*shape)
