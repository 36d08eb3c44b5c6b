# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The package's workers around models on ``meta``, without Ray and verl's engines.

Numbers read from the device are zeros, so what a worker adds up over its ranks is added up on the host here.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from benchmarks.sizes import Size
from tests.real_size import models
from verl_uae.chain.conditioner import ConditionCache
from verl_uae.chain.draw import Painter
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.families.family import DecoderFamily
from verl_uae.stages.common.build import evaluation_plan, painter_settings
from verl_uae.stages.common.worker import DecoderTrainingWorker
from verl_uae.stages.g4u.decoder_worker import DecoderWorker, Redrawer
from verl_uae.stages.pretrain.worker import FlowMatching, PretrainWorker, build_pair_encoder, density
from verl_uae.stages.u4g.config import chosen_objective
from verl_uae.stages.u4g.worker import DecoderPolicyWorker


def painter(
    config: Any, conditioner: Any, codec: Any, family: DecoderFamily, clip: str, *, micro_batch_size: int
) -> Painter:
    """As :func:`~verl_uae.stages.common.build.build_painter` builds it."""
    settings = painter_settings(config, family, micro_batch_size)
    conditioner.family = family
    conditions = ConditionCache(conditioner, config.uae.conditioner.cache_size)
    return Painter(conditions, codec, models.scorer(clip), settings, "meta")


def training_painter(config: Any, size: Size, clip: str, module: DecoderModule) -> Painter:
    """That of a rank that trains the decoder."""
    micro_batch_size = config.uae.train.micro_batch_size
    codec = models.vae()
    family = models.family(module, codec)
    return painter(config, models.conditioner(size), codec, family, clip, micro_batch_size=micro_batch_size)


class _OneRank(DecoderTrainingWorker):
    """One rank of a training worker."""

    loss_fn: Any

    def train_batch(self, data: TensorDict) -> TensorDict:  # type: ignore[override]
        """verl's worker, without its times and memory statistics."""
        output = self.engine.train_batch(data, self.loss_fn)
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": output["metrics"]})

    @staticmethod
    def total_weight(weight_B: torch.Tensor) -> float:
        """Of one rank."""
        return float(weight_B.sum())


class PolicyWorker(_OneRank, DecoderPolicyWorker):
    """One rank of :class:`DecoderPolicyWorker`."""


class PairWorker(_OneRank, PretrainWorker):
    """One rank of :class:`PretrainWorker`."""


def policy_worker(config: Any, size: Size, clip: str, module: DecoderModule, **engine: Any) -> PolicyWorker:
    """A worker as ``init_model`` leaves it."""
    worker = object.__new__(PolicyWorker)
    _place(worker, config, models.engine(models.PolicyEngine, module, **engine))
    worker.painter = training_painter(config, size, clip, module)
    worker.objective = worker.loss_fn = chosen_objective(config)
    worker.captions, worker.replica, worker._rollout = None, None, None
    worker.family = worker.painter.family
    return worker


def _place(worker: Any, config: Any, engine: Any) -> None:
    worker.run, worker.engine = config, engine
    worker._rank, worker._world_size = 0, 1


def pair_worker(config: Any, size: Size, clip: str, module: DecoderModule, **engine: Any) -> PairWorker:
    """A worker as ``init_model`` leaves it."""
    worker = object.__new__(PairWorker)
    _place(worker, config, models.engine(models.PairEngine, module, **engine))
    worker.painter = training_painter(config, size, clip, module)
    worker.family = worker.painter.family
    worker.density = density(config, worker.family)
    worker.loss_fn = FlowMatching(worker.density)
    worker.encoder = build_pair_encoder(config, worker.painter)
    return worker


def decoder_worker(config: Any, size: Size, clip: str) -> Any:
    """A rank that redraws captions, its models on the device."""
    worker = object.__new__(DecoderWorker)
    worker.config, worker._rank = config, 0
    decoder, batch_size = models.decoder(size), config.uae.decoder.batch_size
    drawing = painter(config, models.conditioner(size), decoder.vae, decoder.family, clip, micro_batch_size=batch_size)
    worker.redrawer = Redrawer(decoder, drawing, evaluation_plan(config, decoder.family), 1)
    return worker
