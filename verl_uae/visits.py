# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Frozen models that are on the accelerator only while they are used.

Their weights stay on the host, in pinned memory where there is an accelerator, and once for the processes of a node
where they lie in a master (:mod:`verl_uae.masters`): they are copied to the device in a stream of their own, so that
the host goes on meanwhile, and dropped there, never copied back. Back go only tensors that were written to on the
device, as a caption server's are by a weight transfer.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from verl_uae.masters import is_shared

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

_AHEAD: ContextVar[bool] = ContextVar("ahead", default=False)

#: Module that visits -> the event behind the copy of its weights, and the module of torch that it belongs to.
_ARRIVALS: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()


@functools.cache
def _masters() -> Any:
    """Tensor on a device -> the one on the host that it is a copy of, and the version of the copy."""
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


@contextlib.contextmanager
def ahead() -> Iterator[None]:
    """Visits begun within leave the caller's stream free: weights arrive in the order of the calls, and whoever uses a
    module calls :func:`arrive` before."""
    token = _AHEAD.set(True)
    try:
        yield
    finally:
        _AHEAD.reset(token)


def arrive(*modules: nn.Module) -> None:
    """Let the stream that is current here wait for weights of modules that are on their way to its device. Costs next
    to nothing where they have arrived, and nothing where none ever travelled."""
    if not _ARRIVALS:
        return
    known = (_ARRIVALS.get(part) for module in modules for part in module.modules())
    for event, backend in {id(found[0]): found for found in known if found is not None}.values():
        backend.current_stream().wait_event(event)


def visit(module: nn.Module, device: str | torch.device) -> None:
    """Move a module to an accelerator or, with ``cpu``, back to where its weights have stayed, in place.

    What the caller queues on the accelerator from here on comes after the copy, unless within :func:`ahead`.

    Args:
        module: without gradients.
        device: where it is from now on.
    """
    if str(device) == "cpu":
        # Memory that is let go may be given out again to the stream that is current here: not before the copy is done.
        arrive(module)
        module._apply(_home)
        for part in module.modules():
            _ARRIVALS.pop(part, None)
        return
    if any(tensor.device.type == "cpu" for tensor in _tensors(module).values()):
        _pin(module)
        _send(module, device)
    if not _AHEAD.get():
        arrive(module)


def _send(module: nn.Module, device: str | torch.device) -> None:
    import torch

    masters = {name: tensor.data for name, tensor in _tensors(module).items() if tensor.device.type == "cpu"}
    backend, stream = _side(torch.device(device).type)
    if stream is not None:
        # The memory is that of the caller's stream, which may still work in what it held before.
        stream.wait_stream(backend.current_stream())

    def copied(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor
        there = torch.empty_like(tensor, device=device, requires_grad=False)
        with contextlib.nullcontext() if stream is None else backend.stream(stream):
            return there.copy_(tensor, non_blocking=True)

    try:
        module._apply(copied)
    finally:
        # Also where memory ran out on the way.
        for name, tensor in _tensors(module).items():
            if name in masters and tensor.device.type != "cpu":
                _masters()[tensor] = (masters[name], tensor._version)
        if stream is not None:
            event = backend.Event()
            event.record(stream)
            for part in module.modules():
                _ARRIVALS[part] = (event, backend)


@functools.cache
def _side(kind: str) -> tuple[Any, Any]:
    """torch's module of a kind of device, and the stream in which weights travel; None of one that has no streams."""
    import torch

    backend: Any = getattr(torch, kind, None)
    return backend, backend.Stream() if hasattr(backend, "Stream") else None


def _home(tensor: Tensor) -> Tensor:
    """The tensor on the host: its master, if nothing was written to the copy."""
    master, version = _masters().pop(tensor, (None, None))
    return tensor.to("cpu") if master is None or version != tensor._version else master


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _pin(module: nn.Module) -> None:
    """Into memory that an accelerator copies from by itself, where there is one; a master is, or cannot be."""
    import torch

    if not torch.accelerator.is_available():
        return
    try:
        module._apply(
            lambda tensor: tensor if tensor.device.type != "cpu" or is_shared(tensor) else tensor.pin_memory()
        )
    except RuntimeError as error:
        # The host may allow less pinned memory than it has.
        logger.warning("weights of %s travel from memory that is not pinned: %s", type(module).__name__, error)
