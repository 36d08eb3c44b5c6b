# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""On a plain module; tests/engines/test_decoder.py does the same on sharded ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from verl_uae.engines.shadow import WeightShadow, local_shards, warmed_up
from verl_uae.seeding import normal


def module() -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layers[1].bias.requires_grad_(False)
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            parameter.copy_(normal(tuple(parameter.shape), name))
    return layers


@torch.no_grad()
def shift(layers: nn.Module, by: float) -> None:
    for parameter in layers.parameters():
        parameter.add_(by)


def test_the_average_follows_the_closed_form() -> None:
    layers = module()
    start = layers[0].weight.detach().clone()
    average = WeightShadow(layers)
    for _ in range(5):
        shift(layers, 1.0)
        average.update(0.9)
    # w_t = w_0 + t, so the average is w_0 + sum over t of 0.1 * 0.9^(5 - t) * t, plus nothing of the start's offset 0.
    expected = start + sum(0.1 * 0.9 ** (5 - t) * t for t in range(1, 6))
    torch.testing.assert_close(average.state_dict()["0.weight"], expected, atol=1e-6, rtol=0)


def test_holds_the_trainable_parameters_only() -> None:
    assert set(WeightShadow(module()).state_dict()) == {"0.weight", "0.bias", "1.weight"}


def test_swapping_shows_the_copy_and_restores_bit_for_bit_after_an_error() -> None:
    layers, x = module(), normal((5, 3), "x")
    old_output, copy = layers(x), WeightShadow(layers)
    shift(layers, 0.25)
    live = {name: p.detach().clone() for name, p in layers.named_parameters() if p.requires_grad}
    kept = copy.state_dict()
    with pytest.raises(ZeroDivisionError), copy.swapped():
        for name, tensor in kept.items():
            assert torch.equal(layers.get_parameter(name), tensor)
        raise ZeroDivisionError
    assert all(torch.equal(layers.get_parameter(name), tensor) for name, tensor in live.items())
    assert all(torch.equal(copy.state_dict()[name], tensor) for name, tensor in kept.items())
    assert not torch.equal(layers(x), old_output)


def test_while_swapped_in_the_copy_is_out_of_reach() -> None:
    layers = module()
    copy = WeightShadow(layers)
    with copy.swapped():
        for use in (copy.copy_, copy.state_dict, lambda: copy.update(0.5), lambda: copy.swapped().__enter__()):
            with pytest.raises(RuntimeError, match="swapped into the module"):
                use()
    copy.copy_()


def test_decay_zero_copies_and_other_decays_are_refused() -> None:
    layers = module()
    copy = WeightShadow(layers)
    shift(layers, 1.0)
    copy.update(0.0)
    assert torch.equal(copy.state_dict()["0.weight"], layers[0].weight)
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="decay must be in"):
            copy.update(decay)


def test_a_state_goes_round_and_a_strange_one_is_refused() -> None:
    layers = module()
    copy = WeightShadow(layers)
    state = copy.state_dict()
    shift(layers, 1.0)
    copy.copy_()
    assert not torch.equal(copy.state_dict()["0.bias"], state["0.bias"]), "a state is not a view"
    copy.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in copy.state_dict().items())
    for strange in ({}, {**state, "more": torch.zeros(1)}, {**state, "0.bias": torch.zeros(9)}):
        with pytest.raises(ValueError, match="differ"):
            copy.load_state_dict(strange)


def test_shards_share_storage_with_the_parameters() -> None:
    layers = module()
    local_shards(layers)["0.bias"].zero_()
    assert torch.equal(layers[0].bias, torch.zeros(4))


class FakeAccelerator:
    """A device whose copies to the host are done when it is asked to synchronise, and not before."""

    def __init__(self, layers: nn.Module) -> None:
        self.arrived = {name: weight.detach().clone() for name, weight in layers.named_parameters()}
        self.layers = layers
        for weight in layers.parameters():
            weight.data.fill_(float("nan"))

    @torch.no_grad()
    def synchronize(self) -> None:
        for name, weight in self.layers.named_parameters():
            weight.copy_(self.arrived[name])


def read_by_copying(layers: nn.Module) -> dict[str, torch.Tensor]:
    return WeightShadow(layers).state_dict()


def read_by_averaging(layers: nn.Module) -> dict[str, torch.Tensor]:
    shadow = WeightShadow(module())
    shadow._module = layers
    shadow.update(0.5)
    return shadow.state_dict()


def read_by_swapping(layers: nn.Module) -> dict[str, torch.Tensor]:
    shadow = WeightShadow(module())
    shadow._module = layers
    with shadow.swapped():
        pass
    return {name: weight.detach() for name, weight in layers.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("read", [read_by_copying, read_by_averaging, read_by_swapping])
def test_offloaded_shards_are_waited_for_before_they_are_read(monkeypatch: pytest.MonkeyPatch, read: Callable) -> None:
    """verl offloads without blocking: until a synchronise the host memory holds anything."""
    expected = {name: weight.detach().clone() for name, weight in module().named_parameters() if weight.requires_grad}
    layers = module()
    device = FakeAccelerator(layers)
    monkeypatch.setattr("verl_uae.engines.shadow.is_device_available", lambda: True)
    monkeypatch.setattr("verl_uae.engines.shadow.get_torch_device", lambda: device)
    found = read(layers)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_young_average_follows_flow_grpo() -> None:
    """Their code averages at every eighth update, at n = 7, 15, ...: after 120 the start weighs 0.042, not 0.206."""
    assert math.prod(warmed_up(0.9, n) for n in range(7, 120, 8)) == pytest.approx(0.0419, abs=1e-4)
    assert [warmed_up(0.9, n) for n in (0, 1, 79, 80, 1000)] == [1 / 10, 2 / 11, 80 / 89, 0.9, 0.9]
