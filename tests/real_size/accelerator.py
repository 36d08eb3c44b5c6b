# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The device ``meta`` in the place of an accelerator: real shapes, no arithmetic, no memory.

What an accelerator refuses, and what it is slow at, can be seen without one: tensors of two devices in one operation,
the host waiting for a number, weights that travel, memory that is held. Numbers read from the device are zeros.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verl_uae.estimate.meter import Meter, tensors_of
from verl_uae.reward.scorer import RewardScorer

PACKAGE = str(Path(sys.modules["verl_uae"].__file__ or "").parent) + "/"

GIB = 2**30

#: Operations that are given tensors of two devices on an accelerator too.
_TWO_DEVICES = ("_to_copy", "copy_", "set_")
#: Operations whose indices may lie on the host if what they index does not.
_HOST_INDICES = ("index", "index_put", "index_put_", "_unsafe_index")
#: Of these, those that write; one number under a mask is filled in without waiting.
_WRITES = ("index_put", "index_put_")


class MixedDevicesError(AssertionError):
    """An operation was given tensors of the accelerator and of the host."""


def _refuse_two_devices(name: str, args: Any, kwargs: Any) -> None:
    if name in _TWO_DEVICES:
        return
    host_indices = name in _HOST_INDICES and args[0].device.type == "meta"
    looked_at = (args[:1], args[2:], kwargs) if host_indices else (args, kwargs)
    tensors = [leaf for leaf in tree_leaves(looked_at) if isinstance(leaf, Tensor)]
    # A number on the host goes with anything.
    kinds = {tensor.device.type for tensor in tensors if tensor.dim() > 0 or tensor.device.type == "meta"}
    if len(kinds) > 1:
        shapes = ", ".join(f"{tensor.device.type} {tuple(tensor.shape)}" for tensor in tensors)
        raise MixedDevicesError(f"{name} in {_place()}: {shapes}")


class Devices(Meter):
    """Refuses operations on two devices, and knows what masks hold: for models that ask. It counts no waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _refuse_two_devices(func._schema.name.split("::")[1], args, kwargs or {})
        return super().__torch_dispatch__(func, types, args, kwargs)


class Accelerator(Meter):
    """Watches what is done with tensors on ``meta`` while it is entered.

    Modes hold for one thread; :meth:`in_threads_of` takes it into those of reward terms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: Counter[str] = Counter()
        """How often the host waited for the device, by the function of this package that asked."""
        self.frozen_bytes_to_host = 0
        """Of weights without gradient in modules that were moved."""
        self._host_reads = _HostReads(self)

    def __enter__(self) -> Accelerator:
        self._host_reads.__enter__()
        TorchDispatchMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)
        self._host_reads.__exit__(*error)

    @property
    def peak_gib(self) -> float:
        """Most memory held at a time, GiB."""
        return self.peak_bytes / GIB

    def in_threads_of(self, scorer: RewardScorer) -> RewardScorer:
        """The same scorer, whose terms are watched as well."""
        run = scorer.guard.run

        def watched(owner: str, call: Callable[[], Any]) -> Any:
            def inside() -> Any:
                with self:
                    return call()

            return run(owner, inside)

        scorer.guard.run = watched  # type: ignore[method-assign]
        return scorer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        _refuse_two_devices(name, args, kwargs)
        found = self._read(func, name, args, kwargs)
        if found is None:
            found = self._computed(func, args, kwargs)
        self._hold(tensors_of(found))
        return found

    def synced(self) -> None:
        """Note that the host waits here."""
        self.syncs[_place()] += 1

    def _read(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """What an operation that makes the host wait gives; None for all others."""
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            return None
        if name == "copy_":
            if first.device.type == "cpu" and args[1].device.type == "meta":
                self.synced()
                return first.zero_()
            if first.device.type == "meta" and args[1].device.type == "cpu":
                self._to_device(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            return None
        if first.device.type != "meta":
            if name == "_to_copy" and torch.device(kwargs.get("device") or "cpu").type == "meta":
                self._to_device(kwargs.get("non_blocking"))
            return None
        if name in _HOST_INDICES:
            return self._indexed(func, name, args, kwargs)
        if name == "_to_copy" and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return self._to_host(first, kwargs)
        if name == "_local_scalar_dense":
            self.synced()
            return torch.zeros((), dtype=first.dtype).item()
        if name == "equal":
            self.synced()
            return True
        if name == "nonzero":
            self.synced()
            return torch.empty(first.numel(), first.dim(), dtype=torch.long, device="meta")
        return None

    def _to_host(self, tensor: Tensor, kwargs: Any) -> Tensor:
        dtype = kwargs.get("dtype") or tensor.dtype
        if _moves_module():
            self.frozen_bytes_to_host += 0 if tensor.requires_grad else tensor.numel() * tensor.element_size()
            # Of real size, but no more memory than one number.
            return torch.zeros((), dtype=dtype).expand(tensor.shape)
        if not kwargs.get("non_blocking"):
            self.synced()
        return torch.zeros(tensor.shape, dtype=dtype)

    def _to_device(self, non_blocking: bool | None) -> None:
        """From memory that is not pinned the host waits for all that the device was given before."""
        if not non_blocking and not _moves_module():
            self.synced()

    def _indexed(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """The host asks how many places a mask has, and sends indices of its own."""
        indices = [index for index in args[1] if index is not None]
        if any(index.device.type == "cpu" for index in indices):
            self._to_device(False)
        masks = [index for index in indices if index.device.type == "meta" and index.dtype == torch.bool]
        if not masks:
            return None
        if name in _WRITES:
            if args[2].numel() > 1:
                self.synced()
            return None
        self.synced()
        places: list[Tensor | None] = []
        for index in args[1]:
            if index is None or index.dtype != torch.bool:
                places.append(index)
            else:
                places += [index.new_empty(index.numel(), dtype=torch.long) for _ in range(index.dim())]
        return func(args[0], places, **kwargs)


class _HostReads(TorchFunctionMode):
    """Reads that do not reach the dispatcher."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self._accelerator = accelerator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist and args[0].device.type == "meta":
            self._accelerator.synced()
            return torch.zeros(args[0].shape, dtype=args[0].dtype).tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == "meta":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                self._accelerator.synced()
        if func in (Tensor.__repr__, Tensor.__format__) and args[0].device.type == "meta":
            self._accelerator.synced()
            shown = torch.zeros(args[0].shape, dtype=args[0].dtype)
            return func(shown, *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _frames() -> Iterable[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place() -> str:
    """``module.py:function`` of this package that is nearest to the operation."""
    for frame in _frames():
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        # A comprehension is its function's.
        if file.startswith(PACKAGE) and not name.startswith("<"):
            return f"{file.removeprefix(PACKAGE)}:{name}"
    return "outside the package"


def _moves_module() -> bool:
    return any(frame.f_code is nn.Module._apply.__code__ for frame in _frames())
