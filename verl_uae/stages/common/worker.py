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
from torch import Tensor, nn
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.device import get_device_id, get_device_name, get_torch_device
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

import verl_uae.engines.decoder
import verl_uae.engines.supervised  # noqa: F401  registers the engines in the worker process
from verl_uae.chain.draw import FieldOf, Painter
from verl_uae.chain.records import Draw, Outcome, Sample
from verl_uae.compiling import prefer_attention
from verl_uae.engines.export import export_folder, trained_state
from verl_uae.engines.shadow import warmed_up
from verl_uae.engines.update_metrics import CountsLeftOut, is_left_out
from verl_uae.families.family import DecoderFamily
from verl_uae.flow.plan import SamplingPlan
from verl_uae.masters import turn
from verl_uae.stages.common.build import DTYPES, EMA, evaluation_plan


class DecoderTrainingWorker(CountsLeftOut, TrainingWorker):
    """verl's training worker around the decoder.

    Args:
        config: the whole composed configuration.
        worker_config: of :func:`~verl_uae.stages.u4g.worker.worker_config`.
    """

    painter: Painter
    family: DecoderFamily

    def __init__(self, config: DictConfig, worker_config: TrainingWorkerConfig) -> None:
        # verl's training worker leaves collectives torch's timeout of ten minutes, and asks for the backend
        # "cpu:gloo,cpu:gloo" on a CPU, which torch refuses as a duplicate.
        backend = "gloo" if get_device_name() == "cpu" else None
        initialize_global_process_group_ray(config.actor_rollout_ref.nccl_timeout, backend)
        super().__init__(worker_config)
        self.run = config
        prefer_attention(config.uae.decoder.attention)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def evaluate(self, samples: Sequence[Sample], probes: int, plan: dict[str, Any] | None = None) -> list[Outcome]:
        """Draw one picture per sample with the averaged weights, split evenly and filled up over the ranks.

        Args:
            samples: pictures with captions.
            probes: outcomes of the first so many come with their picture.
            plan: draw with the training sampler and the live weights; else with the ODE sampler of ``uae.decoder``.

        Returns:
            Outcomes of the samples ``rank, rank + world_size, ...``.
        """
        self.prepare_evaluation()
        numbers, padded = self.share_of(len(samples))
        draws = [self.named(samples[number], 0, 0, want_picture=number < probes) for number in padded]
        with self._frozen_on_device(), self.engine.eval_mode():
            if plan is not None:
                drawn = self.painter.draw(self._field(), SamplingPlan.from_dict(plan), draws, collective=True)
            else:
                chosen = evaluation_plan(self.run, self.family)
                with self._weights(self._averaged):
                    drawn = self.painter.draw(self.engine.field, chosen, draws, collective=True)
        return drawn.outcomes[: len(numbers)]

    def prepare_evaluation(self) -> None:
        """Bring up to date what draws beside the engine; every rank calls it."""

    def named(self, sample: Sample, step: int, member: int, **wanted: bool) -> Draw:
        """See :meth:`~verl_uae.chain.records.Draw.for_decoder`."""
        uae = self.run.uae
        return Draw.for_decoder(
            sample, seed=uae.seed, step=step, member=member, share_noise=uae.u4g.share_noise, **wanted
        )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export(self, folder: str, entries: dict[str, Any]) -> None:
        """Write the averaged weights as a decoder folder, with the inference settings of the run."""
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        weights, decoder = self._averaged or "live", self.run.uae.decoder
        export_folder(self.engine, decoder.path, folder, weights=weights, entries=entries, shift=decoder.shift)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def decoder_state(self) -> list[Any]:
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
        return [self.painter.to]

    def _frozen_modules(self) -> list[nn.Module]:
        """Of the frozen models, those whose weights never change."""
        found = [self.painter.vae, *self.painter.scorer.networks()]
        follows = self.run.uae.conditioner.weights == "synced"
        return found if follows else [self.painter.conditions.conditioner, *found]

    def _put_away(self) -> None:
        """Once all models are loaded: the frozen ones go where they wait until they are used."""
        waits = self._offload or get_device_name() == "cpu"
        with turn(waits and self.run.uae.decoder.shared_master) as share:
            if self._offload:
                self._move_frozen("cpu")
            share(*self._frozen_modules())

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
