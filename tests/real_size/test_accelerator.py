# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The guard itself: what an accelerator refuses or waits for is refused or counted, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.real_size.accelerator import Accelerator, MixedDevicesError


def there(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="meta")


def mask(*shape: int) -> Tensor:
    return there(*shape, dtype=torch.bool)


def here(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def written(index: Any, value: Any) -> Tensor:
    target = there(4, 3)
    target[index] = value
    return target


WAITS: dict[str, Callable[[], Any]] = {
    "item": lambda: there(1).item(),
    "float": lambda: float(there(1)),
    "bool": lambda: bool((there(4) > 0).any()),
    "a slice's end": lambda: here(8)[: there(dtype=torch.long)],
    "tolist": lambda: there(4).tolist(),
    "print": lambda: repr(there(4)),
    "text": lambda: f"{there(4)}",
    "formatted": lambda: f"{there():.3f}",
    "equal": lambda: torch.equal(there(4), there(4)),
    "in": lambda: 3 in there(4),
    "nonzero": lambda: mask(4).nonzero(),
    "where": lambda: torch.where(mask(4)),
    "mask": lambda: there(4, 3)[mask(4)],
    "mask of two dimensions": lambda: there(4, 3)[mask(4, 3)],
    "mask and place": lambda: there(4, 3)[mask(4), 0],
    "mask of columns": lambda: there(4, 3)[:, mask(3)],
    "write under a mask": lambda: written(mask(4), there(2, 3)),
    "cpu": lambda: there(4).cpu(),
    "host type": lambda: there(4).type(torch.FloatTensor),
    "copy to the host": lambda: here(4).copy_(there(4)),
    "from the host": lambda: here(4).to("meta"),
    "copy from the host": lambda: there(4).copy_(here(4)),
    "a list's indices": lambda: there(4)[[0, 2]],
}


@pytest.mark.parametrize("name", WAITS)
def test_what_makes_the_host_wait_is_counted_once(name: str) -> None:
    accelerator = Accelerator()
    with accelerator:
        WAITS[name]()
    assert accelerator.syncs == {"outside the package": 1}


FREE: dict[str, Callable[[], Any]] = {
    "arithmetic": lambda: there(4) * 2.0 + here(),
    "a number under a mask": lambda: written(mask(4), 0.0),
    "torch.where of three": lambda: torch.where(mask(4), there(4), 0.0),
    "indices of the device": lambda: there(4)[there(2, dtype=torch.long)],
    "to the host without blocking": lambda: there(4).to("cpu", non_blocking=True),
    "from the host without blocking": lambda: here(4).to("meta", non_blocking=True),
    "copy from the host without blocking": lambda: there(4).copy_(here(4), non_blocking=True),
    "a module from the host": lambda: nn.Linear(4, 4).to("meta"),
}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_make_the_host_wait_is_not_counted(name: str) -> None:
    accelerator = Accelerator()
    with accelerator:
        FREE[name]()
    assert not accelerator.syncs


REFUSED: dict[str, Callable[[], Any]] = {
    "sum": lambda: there(4) + here(4),
    "one number of one dimension": lambda: there(4) * here(1),
    "a number of the device": lambda: here(4) + there(),
    "place of the answer": lambda: torch.add(there(4), there(4), out=here(4)),
    "list": lambda: torch._foreach_add_([there(4)], [here(4)]),
    "embedding": lambda: nn.functional.embedding(here(2, dtype=torch.long), there(4, 4)),
    "values of a write": lambda: there(4).index_put_((here(1, dtype=torch.long),), here(1)),
    "indices of the device into the host": lambda: here(4)[there(2, dtype=torch.long)],
    "mask of the device over the host": lambda: here(4)[mask(4)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_of_two_devices_are_refused(name: str) -> None:
    with pytest.raises(MixedDevicesError), Accelerator():
        REFUSED[name]()


def test_frozen_weights_on_their_way_to_the_host_and_what_lives_are_counted_in_bytes() -> None:
    accelerator = Accelerator()
    with accelerator:
        module = nn.Linear(4, 8, device="meta", dtype=torch.bfloat16)
        module.bias.requires_grad_(False)
        assert accelerator.live_bytes == 2 * (32 + 8)
        scratch = there(100)
        assert accelerator.live_bytes == 80 + 400
        del scratch
        assert accelerator.live_bytes == 80 and accelerator.peak_bytes == 480
        module.to("cpu")
        assert accelerator.frozen_bytes_to_host == 16
        assert accelerator.live_bytes == 0
    assert not accelerator.syncs


def test_a_call_like_an_earlier_one_gives_the_same_layout_in_memory_of_its_own() -> None:
    def calls() -> list[Tensor]:
        turned = there(3, 2).t()
        return [turned + 1, turned + 1.5, turned.double() + 1, turned > 0, *torch.max(turned, 1), turned.view(-1, 3)]

    unwatched = calls()
    accelerator = Accelerator()
    with accelerator:
        first = calls()
        held = accelerator.live_bytes
        again = calls()
        assert accelerator.live_bytes == 2 * held
    for wanted, *found in zip(unwatched, first, again, strict=True):
        for tensor in found:
            assert (tensor.shape, tensor.stride(), tensor.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
