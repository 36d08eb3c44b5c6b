# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The controller's side of workers that train the decoder."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from omegaconf import DictConfig
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

from verl_uae.chain.records import Outcome, Sample
from verl_uae.errors import DecoderError, describe
from verl_uae.families.family import DecoderFamily
from verl_uae.flow.plan import SamplingPlan
from verl_uae.stages.common.build import decoder_family
from verl_uae.stages.common.worker import DecoderTrainingWorker

#: Seconds that other ranks get to show that they died, after one has raised.
GRACE_S = 10.0


class DecoderTrainingGroup:
    """All ranks of a worker that trains the decoder. They shard one model, so a rank that dies ends the run.

    Args:
        worker: class of the ranks.
        config: the whole composed configuration.
        pool: verl resource pool the ranks live in.
        total_steps: steps of the run that train the decoder.
    """

    def __init__(
        self, worker: type[DecoderTrainingWorker], config: DictConfig, pool: RayResourcePool, total_steps: int
    ) -> None:
        self.config = config
        self.group = RayWorkerGroup(
            resource_pool=pool,
            ray_cls_with_init=RayClassWithInitArgs(cls=ray.remote(worker), config=config, total_steps=total_steps),
            name_prefix=f"uae_learner_{uuid.uuid4().hex[:8]}_",
            device_name=config.trainer.device,
        )
        self._loading: list[Any] = [worker.init_model.remote() for worker in self.group.workers]

    @functools.cached_property
    def family(self) -> DecoderFamily:
        """What kind of decoder the ranks train."""
        return decoder_family(self.config)

    @property
    def ranks(self) -> int:
        """Number of workers."""
        return len(self.group.workers)

    def named_ranks(self) -> Iterator[tuple[str, Any]]:
        """Names and actors of the ranks."""
        for rank, worker in enumerate(self.group.workers):
            yield f"learner rank {rank}", worker

    def wait_until_loaded(self) -> None:
        """Block until every rank has its models.

        Raises:
            DecoderError: if a rank cannot load them, with the reason.
        """
        for rank, call in enumerate(self._loading):
            try:
                ray.get(call)
            except ray.exceptions.RayError as error:
                raise DecoderError(rank, f"could not load its models: {describe(error)}") from error
        self._loading = []

    def evaluate(self, samples: Sequence[Sample], probes: int, plan: SamplingPlan | None = None) -> list[Outcome]:
        """One picture per sample; see :meth:`DecoderTrainingWorker.evaluate`."""
        chosen = None if plan is None else plan.to_dict()
        return interleave(self.call("evaluate", ray.put(list(samples)), probes, chosen), len(samples))

    def save(self, folder: str, step: int) -> None:
        """verl's sharded checkpoint of the decoder; verl removes no older one."""
        self.call("save_checkpoint", folder, None, step, None)

    def load(self, folder: str) -> None:
        """Inverse of :meth:`save`."""
        self.call("load_checkpoint", folder, None, False)

    def export(self, folder: str, entries: Mapping[str, Any]) -> None:
        """Write the averaged weights as a decoder folder, with the inference settings of the run."""
        self.call("export", folder, dict(entries))

    def call(self, method: str, *args: Any) -> list[Any]:
        """A method of all ranks; see :func:`collect`."""
        return collect([getattr(worker, method).remote(*args) for worker in self.group.workers], method)


def collect(calls: Sequence[Any], method: str) -> list[Any]:
    """Answers of all ranks, in order.

    A rank that dies leaves the others waiting in a collective, or makes them fail there; so the first one to end badly
    ends the wait, and a death is named before the failures it caused.

    Raises:
        DecoderError: a rank died.
        ray.exceptions.RayTaskError: none died, but one raised.
    """
    ranks = {call: rank for rank, call in enumerate(calls)}
    answers: dict[int, Any] = {}
    failure: Exception | None = None
    pending = list(calls)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=None if failure is None else GRACE_S)
        for call in done:
            try:
                answers[ranks[call]] = ray.get(call)
            except ray.exceptions.RayActorError as error:
                raise DecoderError(ranks[call], f"died in {method}: {describe(error)}") from error
            except ray.exceptions.RayTaskError as error:
                failure = failure or error
        if not done:
            break
    if failure is not None:
        raise failure
    return [answers[rank] for rank in range(len(calls))]


def interleave(answers: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """Undo the split ``rank::world_size``."""
    merged: list[Any] = [None] * count
    for rank, answer in enumerate(answers):
        merged[rank :: len(answers)] = answer
    return merged
