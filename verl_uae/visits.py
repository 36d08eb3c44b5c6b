# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Frozen models that are on the accelerator only while they are used.

Their weights stay on the host, in pinned memory where there is an accelerator: they are copied to the device, so that
the host goes on meanwhile, and dropped there, never copied back. Back go only tensors that were written to on the
device, as a caption server's are by a weight transfer.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

logger = logging.getLogger(__name__)


@functools.cache
def _masters() -> Any:
    """Tensor on a device -> the one on the host that it is a copy of, and the version of the copy."""
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


def visit(module: nn.Module, device: str | torch.device) -> None:
    """Move a module to an accelerator or, with ``cpu``, back to where its weights have stayed, in place.

    Args:
        module: without gradients.
        device: where it is from now on.
    """
    if str(device) == "cpu":
        module._apply(_home)
        return
    if all(tensor.device.type != "cpu" for tensor in _tensors(module).values()):
        return
    _pin(module)
    masters = {name: tensor.data for name, tensor in _tensors(module).items() if tensor.device.type == "cpu"}
    try:
        module.to(device, non_blocking=True)
    finally:
        # Also where memory ran out on the way.
        for name, tensor in _tensors(module).items():
            if name in masters and tensor.device.type != "cpu":
                _masters()[tensor] = (masters[name], tensor._version)


def _home(tensor: Tensor) -> Tensor:
    """The tensor on the host: its master, if nothing was written to the copy."""
    master, version = _masters().pop(tensor, (None, None))
    return tensor.to("cpu") if master is None or version != tensor._version else master


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _pin(module: nn.Module) -> None:
    """Into memory that an accelerator copies from by itself, where there is one."""
    import torch

    if not torch.accelerator.is_available():
        return
    try:
        module._apply(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)
    except RuntimeError as error:
        # The host may allow less pinned memory than it has.
        logger.warning("weights of %s travel from memory that is not pinned: %s", type(module).__name__, error)
