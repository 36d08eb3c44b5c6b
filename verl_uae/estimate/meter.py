# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Counts what a computation costs while it runs: operations by the formulas of torch's FLOP counter, and bytes that
tensors hold.

On the device ``meta`` a model of any size runs in seconds, with its real shapes and without arithmetic. Two things are
as on a GPU that ``meta`` would do otherwise: attention is one operation that keeps no matrix of scores, and integers
and masks have values, because shapes of what follows may depend on them.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, shape_wrapper
from torch.utils.weak import WeakTensorKeyDictionary

#: Operations that may give the memory of their argument without their schema saying so.
_UNSAID_VIEWS = ("aten::_unsafe_view",)

#: Most numbers of a tensor whose values are known on ``meta``.
_MOST_VALUES = 1 << 26


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    """As often the forward pass as there are gradients; torch's own formula takes grouped convolutions for whole
    ones."""
    batch, transposed, mask = x[0], args[4], args[7]
    positions = math.prod((x if transposed else gradient)[2:])
    return int(2 * batch * positions * math.prod(weight) * (mask[0] + mask[1]))


_FORMULAS: dict[Any, Any] = {**flop_registry, torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward)}


class Meter(TorchDispatchMode):
    """Counts what is done with tensors of one device while it is entered, for the thread that enters it.

    Args:
        device: type of the device. On another than ``meta`` everything is computed, and only counted beside.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device_type = device
        self.flops: Counter[str] = Counter()
        """Operations by the name of the dtype that is computed in, ``tf32`` among them; a multiply-add is two. As torch
        counts, causal attention is counted in full, and all but products, convolutions and attention is not."""
        self.operators = 0
        """Calls that do something: not views."""
        self.touched = 0
        """Bytes of arguments and results of calls whose operations are not counted."""
        self.live_bytes = 0
        """Held on the device now; what was there before is not counted."""
        self.peak_bytes = 0
        self._storages: set[int] = set()
        self._known: dict[Any, Any] = {}
        self._values: Any = WeakTensorKeyDictionary()
        self._replaced = _Replaced(self)

    def __enter__(self) -> Meter:
        self._replaced.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._replaced.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        if self.device_type != "meta":
            found = func(*args, **kwargs)
        else:
            answered, found = self._valued(func, args, kwargs, given)
            if not answered:
                found = self._computed(func, args, kwargs)
        if given:
            self._count(func, args, kwargs, found, given[0].dtype)
        # What comes from outside was there before.
        self._hold(given, counted=False)
        self._hold(tensors_of(found))
        return found

    # ------------------------------------------------------------ operations

    def _count(self, func: Any, args: Any, kwargs: Any, found: Any, dtype: torch.dtype) -> None:
        formula = _FORMULAS.get(func._overloadpacket)
        made = tensors_of(found)
        if func.is_view or not any(tensor.device.type == self.device_type for tensor in made):
            return
        self.operators += 1
        if formula is None:
            # Memory that is only asked for is written by what comes next.
            if not func._schema.name.startswith("aten::empty"):
                self.touched += sum(tensor.nbytes for tensor in (*tensors_of((args, kwargs)), *made))
            return
        key = (func, _signature(args), _signature(tuple(kwargs.items())), "flops")
        if key not in self._known:
            self._known[key] = formula(*args, **kwargs, out_val=found)
        # torch lets convolutions of fp32, and them alone, be computed in TF32.
        in_tf32 = dtype == torch.float32 and "conv" in func._schema.name
        self.flops["tf32" if in_tf32 else str(dtype).removeprefix("torch.")] += self._known[key]

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation gives.

        torch works out most shapes in Python, half a millisecond each, and most calls are like an earlier one: new
        tensors on the device are then made as they were there.
        """
        if not _makes_newtensors_of(func):
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        if known := self._known.get(key):
            made = [torch.empty_strided(*layout, dtype=dtype, device="meta") for *layout, dtype in known]
            return made[0] if len(made) == 1 else tuple(made)
        found = func(*args, **kwargs)
        tensors = tensors_of(found)
        # Some of several may be none.
        whole = len(tensors) == len(func._schema.returns)
        if whole and all(tensor.device.type == "meta" for tensor in tensors):
            self._known[key] = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        return found

    # ------------------------------------------------------------ values

    def value(self, tensor: Tensor) -> Tensor | None:
        """What a tensor on ``meta`` holds, on the host; None where that is not known."""
        if tensor.device.type == "cpu":
            return tensor
        found: Tensor | None = self._values.get(tensor)
        return found

    def _valued(self, func: Any, args: Any, kwargs: Any, leaves: Sequence[Tensor]) -> tuple[bool, Any]:
        """Whether an operation on values that are known answers itself, and what it gives."""
        name = func._schema.name
        device = kwargs.get("device")
        goes_up = device is not None and torch.device(device).type == "meta"
        if not (goes_up or any(leaf.device.type == "meta" for leaf in leaves)):
            return False, None
        if name == "aten::index" and any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in args[1]):
            places = [self._places(index) for index in args[1]]
            return True, func(args[0], [place for some in places for place in some])
        if name == "aten::_local_scalar_dense":
            value = self.value(args[0])
            return True, (torch.zeros((), dtype=args[0].dtype) if value is None else value).item()
        if any(leaf.is_floating_point() or self.value(leaf) is None for leaf in leaves):
            if name == "aten::_to_copy" and device is not None and not goes_up:
                # What the host reads is not known, but how much it is.
                return True, torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            return False, None
        if not leaves and not _whole(kwargs.get("dtype"), args):
            return False, None
        if not leaves and name.startswith("aten::empty"):
            return False, None
        host = tree_map(lambda leaf: self.value(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        if device is not None:
            host[1]["device"] = "cpu"
        computed = func(*host[0], **host[1])
        if device is not None and not goes_up:
            return True, computed
        if func._schema.is_mutable:
            return True, args[0]
        return True, tree_map(self._lifted, computed)

    def _lifted(self, computed: Any) -> Any:
        """A result that was computed on the host, on the device."""
        if not isinstance(computed, Tensor):
            return computed
        lifted = torch.empty_strided(computed.shape, computed.stride(), dtype=computed.dtype, device="meta")
        if not computed.is_floating_point() and computed.numel() <= _MOST_VALUES:
            self._values[lifted] = computed
        return lifted

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        """A mask among indices as the places where it is true: all of them where that is not known."""
        if index is None or index.dtype != torch.bool:
            return [index]
        value = self.value(index)
        if value is None:
            return [torch.empty(index.numel(), dtype=torch.long, device="meta") for _ in range(index.dim())]
        return [place.to("meta") for place in value.nonzero(as_tuple=True)]

    # ------------------------------------------------------------ memory

    def _hold(self, leaves: Iterable[Tensor], *, counted: bool = True) -> None:
        for leaf in leaves:
            if leaf.device.type != self.device_type:
                continue
            storage = leaf.untyped_storage()
            if storage._cdata in self._storages:
                continue
            self._storages.add(storage._cdata)
            size = storage.nbytes() if counted else 0
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._release, storage._cdata, size)

    def _release(self, storage: int, size: int) -> None:
        self._storages.discard(storage)
        self.live_bytes -= size


class _Replaced:
    """What does not reach the dispatcher, or reaches it in parts, replaced while a meter is entered: not by a mode of
    torch's, which is off while a backward pass recomputes."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        attention, tensor_of, tolist = F.scaled_dot_product_attention, torch.tensor, Tensor.tolist
        value = self._meter.value

        def fused(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            chosen: Any = fused_attention if query.device.type == "meta" else attention
            found: Tensor = chosen(query, *args, **kwargs)
            return found

        def listed(tensor: Tensor) -> Any:
            if tensor.device.type != "meta":
                return tolist(tensor)
            found = value(tensor)
            return tolist(torch.zeros(tensor.shape, dtype=tensor.dtype) if found is None else found)

        def numbers(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
            """Made on the host first, where they have values."""
            if device is None or torch.device(device).type != "meta":
                return tensor_of(data, device=device, **kwargs)
            return tensor_of(known(data), device="cpu", **kwargs).to("meta")

        def known(data: Any) -> Any:
            if isinstance(data, list | tuple):
                return [known(part) for part in data]
            return listed(data) if isinstance(data, Tensor) else data

        news = ((F, "scaled_dot_product_attention", fused), (torch, "tensor", numbers), (Tensor, "tolist", listed))
        for owner, name, new in news:
            self._before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, new)

    def __exit__(self, *error: Any) -> None:
        while self._before:
            owner, name, before = self._before.pop()
            setattr(owner, name, before)


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Shapes, operations and memory of ``scaled_dot_product_attention`` by the kernels of a GPU; arguments as there."""
    heads = query.shape[-3]
    if enable_gqa and key.shape[-3] != heads:
        # As many heads without a copy: which one a query reads does not matter here.
        key, value = (each[..., :1, :, :].expand(*each.shape[:-3], heads, *each.shape[-2:]) for each in (key, value))
    if attn_mask is None:
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)
    else:
        bias = attn_mask.to(query.dtype) if attn_mask.dtype == torch.bool else attn_mask
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
        found = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, query.requires_grad)
    output: Tensor = found[0]
    return output


def _whole(dtype: torch.dtype | None, args: Any) -> bool:
    """Whether what an operation makes of nothing are integers or masks."""
    if dtype is not None:
        return not (dtype.is_floating_point or dtype.is_complex)
    return bool(args) and all(isinstance(number, bool | int) for number in args if number is not None)


@functools.cache
def _makes_newtensors_of(func: Any) -> bool:
    """Whether an operation writes to none of its arguments and gives tensors that share memory with none."""
    values = (*func._schema.arguments, *func._schema.returns)
    new = all(value.alias_info is None for value in values) and func._schema.name not in _UNSAID_VIEWS
    return new and {str(value.type) for value in func._schema.returns} == {"Tensor"}


def tensors_of(value: Any) -> list[Tensor]:
    """All of nested arguments or results; torch's own walk takes several times as long."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in tensors_of(part)]
    return [leaf for part in value.values() for leaf in tensors_of(part)] if isinstance(value, dict) else []


def _signature(value: Any) -> Any:
    """What the shapes of an operation depend on, as a key."""
    if isinstance(value, Tensor):
        return value.device.type, value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_signature(part) for part in value)
    return type(value), value
