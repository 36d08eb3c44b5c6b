# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What every worker that trains the decoder shares: averaged weights, validation pictures, export, offload.

Shape legend: N samples of this rank.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.device import get_device_id, get_device_name, get_torch_device
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

import verl_uae.engines.decoder
import verl_uae.engines.supervised  # noqa: F401  registers the engines in the worker process
from verl_uae.chain.draw import FieldOf, PolicyDraw, PolicyRollout, PolicySample, PolicySource
from verl_uae.chain.reconstruct import ChainResult
from verl_uae.chain.records import Outcome, outcome
from verl_uae.engines.export import export_folder, trained_state
from verl_uae.engines.left_out import CountsLeftOut, is_left_out
from verl_uae.engines.shadow import warmed_up
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.stages.common.build import DTYPES, EMA


class DecoderTrainingWorker(CountsLeftOut, TrainingWorker):
    """verl's training worker around the decoder.

    Args:
        config: the whole composed configuration.
        worker_config: of :func:`~verl_uae.stages.u4g.build.worker_config`.
    """

    rollout: PolicyRollout
    shift: float

    def __init__(self, config: DictConfig, worker_config: TrainingWorkerConfig) -> None:
        # verl's training worker leaves collectives torch's timeout of ten minutes, and asks for the backend
        # "cpu:gloo,cpu:gloo" on a CPU, which torch refuses as a duplicate.
        backend = "gloo" if get_device_name() == "cpu" else None
        initialize_global_process_group_ray(config.actor_rollout_ref.nccl_timeout, backend)
        super().__init__(worker_config)
        self.run = config

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def evaluate(
        self, sources: Sequence[PolicySource], probes: int, plan: dict[str, Any] | None = None
    ) -> list[Outcome]:
        """Draw one picture per source with the averaged weights, split evenly and filled up over the ranks.

        Args:
            sources: pictures with captions.
            probes: outcomes of the first so many come with their picture.
            plan: draw with the training sampler and the live weights; else with the ODE sampler of ``uae.decoder``.

        Returns:
            Outcomes of the sources ``rank, rank + world_size, ...``.
        """
        return self.evaluate_pictures(sources, probes, plan)

    def evaluate_pictures(
        self, sources: Sequence[PolicySource], probes: int, plan: dict[str, Any] | None
    ) -> list[Outcome]:
        """See :meth:`evaluate`."""
        numbers, padded = self.share_of(len(sources))
        samples = [PolicySample(number, 0, want_picture=number < probes) for number in padded]
        decoder = self.run.uae.decoder
        sigmas = sigma_schedule(decoder.num_steps, self.shift)
        with self._frozen_on_device(), self.engine.eval_mode():
            if plan is not None:
                chosen = SamplingPlan.from_dict(plan)
                draw = self.rollout.explore(self._field(), chosen, sources, samples, 0)
            else:
                with self._weights(self._averaged):
                    draw = self.rollout.evaluate(self.engine.field, sigmas, decoder.guidance, sources, samples)
        return outcomes_of(draw)[: len(numbers)]

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export(self, folder: str, entries: dict[str, Any]) -> None:
        """Write the averaged weights as a decoder folder, with the inference settings of the run."""
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        weights, decoder = self._averaged or "live", self.run.uae.decoder
        export_folder(self.engine, decoder.path, folder, weights=weights, entries=entries, shift=decoder.shift)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def policy_state(self) -> list[Any]:
        """A Ray reference to what training has changed of the averaged weights, on rank 0; nothing elsewhere.

        A reference in a list, so that whoever waits for all ranks fetches no weights: they may be of another node.
        """
        state = trained_state(self.engine, self._averaged or "live", DTYPES[self.run.uae.decoder.dtype])
        return [] if state is None else [ray.put(state)]

    def share_of(self, count: int) -> tuple[list[int], list[int]]:
        """Numbers ``rank, rank + world_size, ...`` below ``count``, and the same filled up with 0.

        All ranks make equally many velocity calls that way, of whole micro-batches.
        """
        numbers = list(range(self.rank, count, self.world_size))
        size, share = self.run.uae.train.micro_batch_size, math.ceil(count / self.world_size)
        return numbers, numbers + [0] * (math.ceil(share / size) * size - len(numbers))

    @staticmethod
    def total_weight(weight_B: Tensor) -> float:
        """Sum of the weights of all ranks; every rank must call it."""
        total = weight_B.sum().to(get_device_id())
        torch.distributed.all_reduce(total)
        return float(total)

    def _field(self) -> FieldOf:
        """What draws with the engine's current weights."""
        return self.engine.field

    def _frozen(self) -> list[Callable[[str], Any]]:
        """Movers of the frozen models."""
        return [self.rollout.conditions.conditioner.to, self.rollout.vae.to, self.rollout.scorer.to]

    @property
    def _averaged(self) -> str | None:
        return EMA if EMA in self.engine.shadows else None

    @property
    def _offload(self) -> bool:
        return bool(self.run.uae.decoder.offload) and get_device_name() != "cpu"

    def _average(self, updates: int, metrics: Mapping[str, Any]) -> None:
        """Move the averaged weights after an update, whose number and metrics these are.

        The number is that in the run, from 1: nothing of the average depends on a resume.
        """
        ema = self.run.uae.train.ema
        if self._averaged and updates % ema.every == 0 and not is_left_out(metrics):
            self.engine.shadow(EMA).update(warmed_up(ema.decay, updates - 1) if ema.warmup else ema.decay)

    def _weights(self, name: str | None) -> contextlib.AbstractContextManager[Any]:
        return self.engine.shadow(name).swapped() if name else contextlib.nullcontext()

    @contextlib.contextmanager
    def _frozen_on_device(self) -> Iterator[None]:
        """Frozen models on the accelerator while they are used."""
        if self._offload:
            self._move_frozen(get_device_name())
        try:
            yield
        finally:
            if self._offload:
                self._move_frozen("cpu")

    def _move_frozen(self, device: str) -> None:
        for move in self._frozen():
            move(device)
        if device == "cpu":
            get_torch_device().empty_cache()


def outcomes_of(draw: PolicyDraw) -> list[Outcome]:
    """Plain records of what was drawn, to travel through Ray."""
    columns = (draw.records, draw.truncated, draw.pictures, draw.reconstructions)
    return [outcome(ChainResult(*row)) for row in zip(*columns, strict=True)]
