# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The captioner's worker: verl's hybrid actor/rollout/reference worker with the fixes UAE needs."""

from __future__ import annotations

import functools
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name, get_torch_device
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker, TrainingWorkerConfig

import verl_uae.engines.captioner  # noqa: F401  registers the engine in the worker process
from verl_uae.engines.captioner import CaptionerEngine
from verl_uae.engines.update_metrics import LEFT_OUT, CountsLeftOut
from verl_uae.stages.common.conditioner_sync import send_language_model


class CaptionerTrainingWorker(CountsLeftOut, TrainingWorker):
    """verl's training worker that survives batches of equal length (upstream issue 7899); counts left-out updates."""

    def __init__(self, config: TrainingWorkerConfig, *, freeze_vision_tower: bool = False) -> None:
        super().__init__(config)
        if isinstance(self.engine, CaptionerEngine):
            self.engine.freeze_vision_tower = freeze_vision_tower

    def infer_batch(self, data: TensorDict) -> TensorDict:
        restore_ragged_position_ids(data)
        return super().infer_batch(data)

    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        restore_ragged_position_ids(data)
        output = super().train_mini_batch(data)
        if output is not None:
            metrics = dict(tu.get(output, "metrics"))
            # One entry per update and rank, of which verl's trainer would take the mean.
            metrics[LEFT_OUT] = [sum(metrics[LEFT_OUT]) / self.engine.get_data_parallel_size()]
            tu.assign_non_tensor(output, metrics=metrics)
        return output


class CaptionerWorker(ActorRolloutRefWorker):
    """verl's hybrid worker; see :class:`CaptionerTrainingWorker` for what differs."""

    ref_worker_cls = CaptionerTrainingWorker

    def __init__(self, config: Any, role: str, **kwargs: Any) -> None:
        super().__init__(config=config, role=role, **kwargs)
        self.actor_worker_cls = functools.partial(
            CaptionerTrainingWorker, freeze_vision_tower=bool(config.actor.get("freeze_vision_tower", False))
        )
        # verl asks for the backend "cpu:gloo,cpu:gloo" on a CPU, which torch refuses as a duplicate; it does
        # not ask when a process group is there already.
        if get_device_name() == "cpu" and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", rank=self.rank, world_size=self.world_size)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    async def send_language_model(self, receivers: tuple[Any, ...], names: tuple[str, ...], dtype: str) -> None:
        """Send the language model as it is now; see
        :func:`~verl_uae.stages.common.conditioner_sync.send_language_model`.

        Args:
            receivers: workers whose conditioner has begun to take it.
            names: of the language model's tensors.
            dtype: of the conditioner.
        """
        engine = self.actor.engine
        # Megatron's are verl's, which are whole where its adapters are merged.
        weights = engine.merged_weights() if isinstance(engine, CaptionerEngine) else engine.get_per_tensor_param()[0]
        bucket_bytes = self.config.rollout.checkpoint_engine.update_weights_bucket_megabytes << 20
        mine = receivers if self.rank == 0 else ()
        await send_language_model(weights, mine, names, bucket_bytes, getattr(torch, dtype))
        if engine.is_param_offload_enabled:
            engine.to("cpu", model=True, optimizer=False, grad=False)
        get_torch_device().empty_cache()


def restore_ragged_position_ids(data: TensorDict) -> None:
    """Give 3D position ids their ragged dimension back, in place.

    Position ids of a vision-language model have shape (B, R, ragged length). When all sequences of a shard are
    equally long, packing takes R for the ragged dimension, and verl's ``maybe_fix_3d_position_ids`` then
    relabels the dimension without rearranging the values, so the next split crashes. Fixed-size images and
    captions cut at the limit make equal lengths common here.
    """
    if "position_ids" not in data.keys():
        return
    position_ids = data["position_ids"]
    if not position_ids.is_nested or position_ids.dim() != 3:
        return
    values, batch = position_ids._values, position_ids.shape[0]
    packed = int(position_ids.offsets()[-1])
    # Right layout: values (R, sum of lengths), packed along the second. Wrong: values (B * R, length), along the first.
    if values.dim() != 2 or packed != values.shape[0]:
        return
    if batch == 1 and packed == values.shape[1]:
        # R is the length: both layouts are the same numbers.
        return
    data["position_ids"] = _ragged_last(values.reshape(batch, -1, values.shape[1]))


def _ragged_last(position_ids_BRL: Tensor) -> Tensor:
    batch, _, length = position_ids_BRL.shape
    values = torch.cat(list(position_ids_BRL), dim=1).contiguous()
    offsets = torch.arange(batch + 1, device=values.device) * length
    return torch.nested.nested_tensor_from_jagged(values, offsets=offsets, jagged_dim=2)
