# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from verl.utils.model import convert_weight_keys

from verl_uae.caption_server.weights import NamedTensors, WeightReceiver, WeightTransferError, send_in_buckets
from verl_uae.compat import ensure_torchvision


def small_model(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def named(model: nn.Module) -> NamedTensors:
    return list(model.state_dict().items())


def load_all(model: nn.Module, tensors: NamedTensors) -> int:
    receiver = WeightReceiver(model)
    receiver.begin()
    receiver.load(tensors)
    return receiver.finish()


def test_all_tensors_arrive_and_are_converted() -> None:
    source, target = small_model(0), small_model(1).bfloat16()
    assert load_all(target, named(source)) == 4
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, source.state_dict()[name].bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [("0.wieght", t[0][1]), *t[1:]], "no tensor '0.wieght'"),
        (lambda t: t[1:], "1 tensors of the caption model were not sent: 0.weight"),
        (lambda t: [("0.weight", t[0][1][:3]), *t[1:]], r"'0.weight' has shape \(3, 4\).*\(4, 4\)"),
        (lambda t: [t[0], *t], "'0.weight' was sent twice"),
        (lambda t: [(f"module.{name}", x) for name, x in t], "no tensor 'module.0.weight'"),
        (lambda t: [], "4 tensors of the caption model were not sent"),
    ],
)
def test_wrong_tensors_are_named(change, message: str) -> None:
    with pytest.raises(WeightTransferError, match=message):
        load_all(small_model(1), change(named(small_model(0))))


def test_one_name_is_enough_for_tied_tensors() -> None:
    model = small_model(0)
    model.append(nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert load_all(model, [pair for pair in named(model) if pair[0] != "2.weight"]) == 4


def test_names_are_those_that_verls_engine_sends(model_dir: Path) -> None:
    ensure_torchvision()
    from transformers import Qwen2_5_VLForConditionalGeneration

    trainer = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_dir)
    sent = list(convert_weight_keys(trainer.state_dict(), trainer).items())
    assert load_all(Qwen2_5_VLForConditionalGeneration(trainer.config), sent) == len(sent)


def test_a_moved_model_is_still_filled() -> None:
    source, target = small_model(0), small_model(1)
    receiver = WeightReceiver(target)
    target.double().float()
    receiver.begin()
    receiver.load(named(source))
    receiver.finish()
    assert torch.equal(target[0].weight, source[0].weight)


class Walk:
    """An async source of tensors that knows whether it was walked to its end."""

    def __init__(self, tensors: NamedTensors) -> None:
        self.tensors = tensors
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[tuple[str, Tensor]]:
        for pair in self.tensors:
            yield pair
        self.ended = True


TENSORS: NamedTensors = [(f"t{i}", torch.full((count,), float(i))) for i, count in enumerate([2, 2, 9, 1, 1, 1])]


def test_buckets_are_bounded_and_complete() -> None:
    buckets: list[NamedTensors] = []

    async def deliver(bucket: NamedTensors) -> None:
        buckets.append(bucket)

    asyncio.run(send_in_buckets(Walk([*TENSORS, ("ids", torch.arange(2))]), deliver, 16, torch.bfloat16))
    # bfloat16 halves the floats: 4, 4, 18, 2, 2, 2 bytes; int64 stays: 16 bytes.
    assert [[name for name, _ in bucket] for bucket in buckets] == [["t0", "t1"], ["t2"], ["t3", "t4", "t5"], ["ids"]]
    assert {tensor.dtype for bucket in buckets for name, tensor in bucket if name != "ids"} == {torch.bfloat16}
    assert buckets[-1][0][1].dtype == torch.int64


def test_every_rank_walks_to_the_end_even_when_delivery_fails() -> None:
    follower = Walk(TENSORS)
    asyncio.run(send_in_buckets(follower, None, 16, torch.float32))
    assert follower.ended

    async def refuse(bucket: NamedTensors) -> None:
        raise WeightTransferError(f"no {bucket[0][0]}")

    leader = Walk(TENSORS)
    with pytest.raises(WeightTransferError, match="no t0"):
        asyncio.run(send_in_buckets(leader, refuse, 16, torch.float32))
    assert leader.ended
