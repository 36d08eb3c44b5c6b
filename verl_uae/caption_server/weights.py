# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Carrying weights from the trainer to a model that follows it, in buckets, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from verl_uae.masters import unshare

NamedTensors = list[tuple[str, Tensor]]

#: Names listed in an error message.
_LISTED = 5


class WeightTransferError(RuntimeError):
    """The weights that arrived are not the weights of the model."""


class WeightReceiver:
    """Copies named tensors into a model and insists on getting all of them.

    Args:
        model: the model to fill; tensors are converted to its dtypes and devices.
        what: the model's name in errors.
    """

    def __init__(self, model: nn.Module, what: str = "caption model") -> None:
        self.model = model
        self.what = what
        self._targets: dict[str, Tensor] = {}
        self._received: set[str] = set()

    def begin(self) -> None:
        """Start an update; an unfinished one is forgotten."""
        unshare(self.model)
        # Looked up anew for every update: moving a model to another device replaces the storage.
        self._targets = dict(self.model.state_dict())
        self._received = set()

    @torch.no_grad()
    def load(self, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Copy one bucket.

        Raises:
            WeightTransferError: a name that the model does not have, or that came twice, or a shape mismatch.
        """
        for name, tensor in named_tensors:
            target = self._targets.get(name)
            if target is None:
                raise WeightTransferError(f"the {self.what} has no tensor {name!r}; it has {_some(self._targets)}")
            if name in self._received:
                raise WeightTransferError(f"tensor {name!r} was sent twice")
            if target.shape != tensor.shape:
                raise WeightTransferError(
                    f"tensor {name!r} has shape {tuple(tensor.shape)}, the {self.what} wants {tuple(target.shape)}"
                )
            target.copy_(tensor)
            self._received.add(name)

    def finish(self) -> int:
        """End the update and return the number of tensors that came.

        Raises:
            WeightTransferError: a tensor of the model did not come. Of tensors that share memory (tied
                embeddings) one is enough.
        """
        filled = {self._targets[name].data_ptr() for name in self._received}
        missing = [name for name, target in self._targets.items() if target.data_ptr() not in filled]
        if missing:
            raise WeightTransferError(f"{len(missing)} tensors of the {self.what} were not sent: {_some(missing)}")
        return len(self._received)


async def send_in_buckets(
    weights: AsyncIterator[tuple[str, Tensor]],
    deliver: Callable[[NamedTensors], Awaitable[object]] | None,
    bucket_bytes: int,
    dtype: torch.dtype,
) -> None:
    """Deliver named tensors in buckets on the CPU, one bucket at a time.

    The iterator gathers sharded tensors with collectives, so every rank has to walk through it to the end: ranks
    without a server pass ``deliver=None``, and a failed delivery is raised only after the walk.

    Args:
        weights: (name, full tensor) pairs.
        deliver: sends one bucket; None to only walk.
        bucket_bytes: a bucket holds at most this much, or a single larger tensor.
        dtype: floating-point tensors are sent in this dtype.
    """
    bucket: NamedTensors = []
    size = 0
    failure: Exception | None = None
    async for name, tensor in weights:
        if deliver is None or failure is not None:
            continue
        host = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        if bucket and size + host.nbytes > bucket_bytes:
            failure = await _attempt(deliver, bucket)
            bucket, size = [], 0
        bucket.append((name, host))
        size += host.nbytes
    if deliver is not None and failure is None and bucket:
        failure = await _attempt(deliver, bucket)
    if failure is not None:
        raise failure


async def _attempt(deliver: Callable[[NamedTensors], Awaitable[object]], bucket: NamedTensors) -> Exception | None:
    try:
        await deliver(bucket)
    # A fault boundary: leaving the walk here would leave the other ranks waiting in a collective.
    except Exception as error:
        return error
    return None


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")
