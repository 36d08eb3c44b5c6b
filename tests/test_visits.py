# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Weights that visit an accelerator. ``meta`` stands in for one: what is there has no numbers, so a copy back fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verl_uae.visits import visit


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_what_visits_comes_back_as_it_was_without_a_copy() -> None:
    module = model()
    before, places = state(module), {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    for _ in range(3):
        visit(module, "meta")
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
        visit(module, "meta")
        visit(module, "cpu")
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        assert places == {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    visit(module, "cpu")


def test_what_is_written_on_the_host_is_what_visits_next() -> None:
    module = model()
    visit(module, "meta")
    visit(module, "cpu")
    module[0].weight.zero_()
    visit(module, "meta")
    visit(module, "cpu")
    assert not module[0].weight.any()


def test_what_is_written_on_the_device_is_copied_back() -> None:
    module = model()
    visit(module, "meta")
    dict(module.named_buffers())["1.running_mean"].add_(1.0)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        visit(module, "cpu")


def test_a_part_of_two_visitors_stays_where_it_is_needed() -> None:
    whole = model()
    part, before = whole[0], state(whole)
    for first, second in ((whole, part), (part, whole)):
        visit(first, "meta")
        visit(second, "meta")
        visit(part, "cpu")
        visit(whole, "cpu")
        assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def test_memory_that_runs_out_on_the_way_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model()
    before, move = state(module), nn.BatchNorm1d._apply

    def full(self: nn.Module, *args: object) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    # Submodules go one after the other.
    monkeypatch.setattr(nn.BatchNorm1d, "_apply", full)
    with pytest.raises(torch.OutOfMemoryError):
        visit(module, "meta")
    monkeypatch.setattr(nn.BatchNorm1d, "_apply", move)
    assert module[0].weight.is_meta
    visit(module, "cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
