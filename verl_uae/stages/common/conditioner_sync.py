# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.conditioner.weights=synced``: the conditioner's language model follows the captioner's.

After every update of the captioner its ranks send the language model, without vision tower and head, in buckets to all
ranks that condition. No rank draws before it has all of it, and the captions of a step are drawn with the weights that
wrote them.

Shape legend: B captions, L text positions of the condition, E language-model width.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray
import torch
from omegaconf import DictConfig
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.debug import marked_timer
from verl.utils.device import get_torch_device
from verl.workers.rollout.utils import ensure_async_iterator

from verl_uae.caption_server.weights import NamedTensors, WeightReceiver, send_in_buckets
from verl_uae.chain.conditioner import ConditionCache
from verl_uae.errors import WorkerError, describe
from verl_uae.visits import visit
from verl_uae.waiting import saying

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Captions whose states say how far the conditioner has moved.
PROBES = (
    "A red cube stands on a wooden table next to a small blue ball.",
    "Two dogs run along a beach at sunset, and waves break behind them.",
    "A street at night, wet from rain; a yellow sign reads OPEN above a green door.",
    "A bowl with three apples and a pear on a white cloth, seen from above.",
)


def own_name(name: str, known: Collection[str]) -> str | None:
    """The language model's name of a captioner's tensor; None of one that belongs to the vision tower or the head.

    Args:
        name: as transformers or Megatron's bridge has it.
        known: names of the language model's tensors.
    """
    while name not in known:
        head, _, name = name.partition(".")
        if head not in ("model", "language_model"):
            return None
    return name


# ------------------------------------------------------------ ranks that condition


class SyncedConditioner:
    """A rank's conditioner, whose weights are those of the last sync.

    Args:
        conditions: of the rank.
        device: where the language model computes, which is not where it is while it is offloaded.
        measures: say how far the states have moved.
    """

    def __init__(self, conditions: ConditionCache, device: str | torch.device, *, measures: bool) -> None:
        self._conditions = conditions
        self._device = torch.device(device)
        self._measures = measures
        self._receiver = WeightReceiver(conditions.conditioner.language_model, "conditioner")
        self._before: Tensor | None = None
        self._begun = False
        self.complete = False
        """Whether a whole language model came, and nothing since has begun to replace it."""

    def begin(self) -> list[str]:
        """Expect tensors of these names in calls of :meth:`load`, then :meth:`finish`."""
        if self._measures and self._before is None:
            self._before = self._states()
        self.complete, self._begun = False, True
        self._receiver.begin()
        return list(self._conditions.conditioner.language_model.state_dict())

    def load(self, bucket: NamedTensors) -> None:
        """Copy tensors into the language model, which keeps its dtype.

        Raises:
            WeightTransferError: they are not its tensors.
        """
        if self._begun:
            self._receiver.load(bucket)

    def finish(self) -> dict[str, float] | None:
        """End the update; metrics, or None where it did not begin, as in a process that was started meanwhile.

        Raises:
            WeightTransferError: a tensor did not come.
        """
        if not self._begun:
            return None
        self._begun = False
        self._receiver.finish()
        self._conditions.forget()
        self.complete = True
        if self._before is None:
            return {}
        moved = (self._states() - self._before).norm() / self._before.norm()
        return {"conditioner/state_drift": float(moved)}

    def _states(self) -> Tensor:
        """States (B, L, E) of :data:`PROBES` in fp32, on the host."""
        conditioner = self._conditions.conditioner
        home = next(conditioner.parameters()).device
        visit(conditioner, self._device)
        states = conditioner.encode(PROBES, self._device).states.to("cpu", torch.float32)
        if home.type != self._device.type:
            visit(conditioner, home)
            # Caption servers take what is free of the device next.
            get_torch_device().empty_cache()
        return states


class TakesCaptioner:
    """Mixin of workers that condition."""

    synced: SyncedConditioner | None = None
    """None where the conditioner is frozen, or nothing is loaded."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def begin_conditioner(self) -> list[str] | None:
        """See :meth:`SyncedConditioner.begin`; None where nothing is loaded."""
        return None if self.synced is None else self.synced.begin()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_conditioner(self, bucket: NamedTensors) -> None:
        """See :meth:`SyncedConditioner.load`."""
        if self.synced is not None:
            self.synced.load(bucket)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def finish_conditioner(self) -> dict[str, float] | None:
        """See :meth:`SyncedConditioner.finish`; None where nothing is loaded."""
        return None if self.synced is None else self.synced.finish()


# ------------------------------------------------------------ ranks of the captioner


async def send_language_model(
    weights: Iterator[tuple[str, Tensor]],
    receivers: Sequence[Any],
    names: Collection[str],
    bucket_bytes: int,
    dtype: torch.dtype,
) -> None:
    """Send the language model to ranks that have begun to take it. Every rank of the captioner must call it.

    Args:
        weights: of the captioner; collective.
        receivers: actors with the methods of :class:`TakesCaptioner`; none on ranks that only walk. One that is dead is
            left out: whoever ends the update notices.
        names: of the language model's tensors.
        bucket_bytes: most bytes in flight, but for a single larger tensor.
        dtype: of the conditioner.

    Raises:
        ray.exceptions.RayTaskError: a receiver could not take a tensor.
    """

    async def chosen() -> AsyncIterator[tuple[str, Tensor]]:
        async for name, tensor in ensure_async_iterator(weights):
            if (own := own_name(name, names)) is not None:
                yield own, tensor

    async def deliver(bucket: NamedTensors) -> None:
        stored = ray.put(bucket)
        answers = await asyncio.gather(
            *(receiver.load_conditioner.remote(stored) for receiver in receivers), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ray.exceptions.RayActorError):
                raise answer

    await send_in_buckets(chosen(), deliver if receivers else None, bucket_bytes, dtype)


# ------------------------------------------------------------ the controller


class ConditionerSync:
    """Mixin of trainers of the captioner, in front of verl's."""

    config: DictConfig
    global_steps: int
    timing_raw: dict
    decoders: Any = None
    """Decoder workers; None where the ranks that train the decoder draw everything."""
    supervisor: Any
    actor_rollout_wg: Any
    conditioner_metrics: Mapping[str, float] = MappingProxyType({})
    """Of the weights that condition now; empty where they are frozen."""
    _synced_steps: int
    """Steps that trained the captioner before the last sync."""

    def other_conditioned(self) -> Iterator[tuple[str, Any]]:
        """Names and actors that condition beside the decoder workers; none of them may die."""
        yield from ()

    def captioner_steps(self, step: int) -> int:
        """How many of the first ``step`` steps train the captioner."""
        return step

    def on_init_end(self) -> None:
        """The captioner is the checkpoint's or that of the beginning: so is the conditioner."""
        if self._synced:
            logger.warning(
                "uae.conditioner.weights=synced: the conditioner follows the captioner, so the reward moves with it; "
                "conditioner/state_drift says how far"
            )
            if self.decoders is not None:
                self.decoders.send_captioner = lambda name, actor: not self._send({name: actor})
            with saying("the captioner's language model to reach the conditioners"):
                self._sync()
        super().on_init_end()  # type: ignore[misc]

    def on_step_end(self) -> None:
        """Before verl sends the weights to the caption servers, which fill the memory of their GPUs then."""
        if self._synced and self.captioner_steps(self.global_steps) != self._synced_steps:
            with marked_timer("sync_conditioner", self.timing_raw):
                self._sync()
        super().on_step_end()  # type: ignore[misc]

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        """verl's; what is said of the conditioner is true of the step's rewards."""
        metrics.update(self.conditioner_metrics)
        return super().step(metrics, timing_raw)  # type: ignore[misc]

    @property
    def _synced(self) -> bool:
        return self.config.uae.conditioner.weights == "synced"

    def _sync(self) -> None:
        workers = [] if self.decoders is None else self.decoders.workers
        ranks = {f"decoder rank {rank}": actor for rank, actor in enumerate(workers)}
        others = dict(self.other_conditioned())
        if self.decoders is not None:
            # They keep their own time: they are waited for, killed and started again.
            with self.supervisor.phase("the decoders", math.inf, "uae.decoder.timeout_s"):
                self.decoders.revive_returned()
        limit_s = self.config.uae.decoder.timeout_s
        with self.supervisor.phase("the captioner to reach the conditioners", limit_s, "uae.decoder.timeout_s"):
            lost = self._send({**ranks, **others})
        if dead := lost & others.keys():
            raise WorkerError(min(dead), "died while it took the captioner's language model")
        with self.supervisor.phase("the decoders", math.inf, "uae.decoder.timeout_s"):
            for rank, name in enumerate(ranks):
                if name in lost:
                    self.decoders.revive(rank)
        self._synced_steps = self.captioner_steps(self.global_steps)
        self.conditioner_metrics = {**self.conditioner_metrics, "conditioner/syncs": float(self._synced_steps)}

    def _send(self, actors: Mapping[str, Any]) -> set[str]:
        """Give ranks the captioner's language model as it is now.

        Args:
            actors: by their names.

        Returns:
            Names of those that died.

        Raises:
            WorkerError: one could not take it.
        """
        names = _answers({name: actor.begin_conditioner.remote() for name, actor in actors.items()})
        if names:
            receivers, tensors = tuple(actors[name] for name in names), tuple(next(iter(names.values())))
            self.actor_rollout_wg.send_language_model(receivers, tensors, self.config.uae.conditioner.dtype)
        taken = _answers({name: actors[name].finish_conditioner.remote() for name in names})
        for measured in taken.values():
            self.conditioner_metrics = {**self.conditioner_metrics, **measured}
        return actors.keys() - taken.keys()


def _answers(calls: Mapping[str, Any]) -> dict[str, Any]:
    """Those of actors that are alive and not new."""
    found = {}
    for name, call in calls.items():
        try:
            answer = ray.get(call)
        except ray.exceptions.RayActorError:
            continue
        except ray.exceptions.RayError as error:
            raise WorkerError(name, f"could not take the captioner's language model: {describe(error)}") from error
        if answer is not None:
            found[name] = answer
    return found
