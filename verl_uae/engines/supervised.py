# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The decoder's training engine with a supervised loss instead of a policy's.

Shape legend: B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine.base import EngineRegistry

from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_batch import blank, on_device
from verl_uae.engines.update_metrics import Figures

#: Value of a training worker's ``model_type`` that selects this engine.
SUPERVISED_TYPE = "uae_decoder_supervised"


@dataclass(frozen=True, slots=True)
class SupervisedOutput:
    """What a supervised loss gives for a micro-batch."""

    loss_B: Tensor
    """Differentiable unless ``backward`` is given."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Figures of shape (B,)."""
    backward: Callable[[Tensor], None] | None = None
    """Does the backward pass for the gradient of the loss with respect to ``loss_B``, for losses that walk their
    graph in pieces; None is autograd's own."""


#: (engine, micro-batch on the device) -> output.
SupervisedLoss = Callable[[DecoderEngine, TensorDict], SupervisedOutput]


def blanked(micro: TensorDict) -> TensorDict:
    """A micro-batch whose floating-point tensors are :func:`~verl_uae.engines.decoder_batch.blank` without weight."""
    valid_B = micro["weight_B"] > 0
    for name, tensor in list(micro.items()):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            micro[name] = blank(tensor, valid_B)
    return micro


@EngineRegistry.register(model_type=SUPERVISED_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class SupervisedEngine(DecoderEngine):
    """One backward pass per micro-batch; the loss is sum(weight * loss) / total_weight over the samples of all ranks,
    so the gradient does not depend on how they are spread over ranks and micro-batches."""

    def forward_backward_batch(  # type: ignore[override]
        self, data: TensorDict, loss_function: SupervisedLoss, forward_only: bool = False
    ) -> dict[str, Any]:
        """Loss and gradient of this rank's part of a mini-batch.

        Args:
            data: B samples with weight_B (1 valid, 0 not), and what the loss reads. Non-tensor:
                micro_batch_size_per_gpu, total_weight (sum of the weights of all ranks).
            loss_function: see :data:`SupervisedLoss`.
            forward_only: no gradient.

        Returns:
            ``model_output`` (empty), ``loss`` (one per micro-batch) and ``metrics`` over the valid samples of all
            ranks.

        Raises:
            ValueError: ranks have different numbers of micro-batches.
        """
        total = float(tu.get_non_tensor_data(data, "total_weight", 0.0))
        size = int(tu.get_non_tensor_data(data, "micro_batch_size_per_gpu", 0))
        micro_batches = list(data.split(size))
        self._check_count(len(micro_batches))
        figures = Figures()
        for number, micro in enumerate(micro_batches if total > 0 else ()):
            last = number == len(micro_batches) - 1
            sync = nullcontext() if forward_only else self._gradient_sync_context(is_last_micro_batch=last)
            moved = blanked(on_device(micro, get_device_id()))
            with torch.set_grad_enabled(not forward_only), sync:
                output = loss_function(self, moved)
                weight_B = moved["weight_B"]
                # FSDP averages gradients over the ranks; this makes it a sum.
                scale_B = weight_B * (self.get_data_parallel_size() / total)
                loss = (output.loss_B * scale_B).sum()
                if not forward_only:
                    if output.backward is None:
                        loss.backward()
                    else:
                        output.backward(scale_B)
            figures.add({**output.metrics, "loss": output.loss_B.detach()}, weight_B > 0, None)
            figures.add_loss(loss)
        metrics, losses = figures.gather(self.get_data_parallel_group())
        return {"model_output": {}, "loss": losses, "metrics": {**metrics, "valid": [total]}}

    def _signal(self, data: TensorDict) -> Tensor:
        trained = any(weight.requires_grad for weight in self.module.parameters())
        return data["weight_B"].max() * float(trained)

    def _check_count(self, count: int) -> None:
        """Ranks with fewer forward passes would leave the others waiting for ever."""
        group = self.get_data_parallel_group()
        counts: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(counts, count, group=group)
        if len(set(counts)) != 1:
            raise ValueError(f"ranks have different numbers of micro-batches: {counts}")
