# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from verl_uae.flow.ode import euler
from verl_uae.flow.schedule import sigma_schedule

SPREAD = 0.4


def gaussian_velocity(x_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    """E[eps - x_0 | x] for data N(0, SPREAD^2): the exact field; it carries noise eps to SPREAD * eps."""
    sigma = sigma_B.view(-1, 1, 1, 1)
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    return (sigma - (1 - sigma) * SPREAD**2) / variance * x_BCHW


def noise(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def error(steps: int, shift: float = 1.0) -> float:
    found = euler(gaussian_velocity, noise(), sigma_schedule(steps, shift))
    return (found - SPREAD * noise()).abs().max().item()


def test_converges_to_the_exact_solution_with_order_one() -> None:
    errors = [error(steps) for steps in (100, 200, 400, 800)]
    assert errors[-1] < 4e-3
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2.0, rel=0.05)
    assert error(400, shift=3.0) < 2e-2


def test_one_step_is_the_tangent_and_constant_fields_are_exact() -> None:
    x = noise()
    one = euler(gaussian_velocity, x, sigma_schedule(1))
    assert torch.equal(one, x - gaussian_velocity(x, torch.ones(3)))
    data = noise(3) * 2 + 1
    straight = euler(lambda x_BCHW, sigma_B: x - data, x, sigma_schedule(7, 3.0))
    assert torch.allclose(straight, data, atol=1e-5)


def test_the_state_stays_fp32_and_sigma_is_per_sample() -> None:
    seen: list[torch.Tensor] = []

    def field(x_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
        assert x_BCHW.dtype == torch.float32 and sigma_B.dtype == torch.float32 and sigma_B.shape == (3,)
        seen.append(sigma_B)
        return (1e-4 * torch.ones_like(x_BCHW)).bfloat16()

    found = euler(field, torch.ones(3, 1, 2, 2, dtype=torch.bfloat16), sigma_schedule(4))
    assert found.dtype == torch.float32
    # 1 - 1e-4 is not a bf16 number: a state rounded to bf16 would still be 1.
    assert 0 < 1 - found.max().item() < 2e-4
    assert [sigma[0].item() for sigma in seen] == [1.0, 0.75, 0.5, 0.25]


def test_a_step_hook_sees_every_step_changes_the_state_and_ends_the_integration() -> None:
    x, table = noise(), sigma_schedule(5, 3.0)
    seen: list[torch.Tensor] = []

    def watch(index: int, state: torch.Tensor) -> tuple[torch.Tensor, bool]:
        assert index == len(seen)
        seen.append(state)
        return state, True

    final = euler(gaussian_velocity, x, table, watch)
    assert torch.equal(final, euler(gaussian_velocity, x, table)) and torch.equal(final, seen[-1]) and len(seen) == 5
    # Each state is where integrating up to its noise level ends.
    assert torch.equal(seen[1], euler(gaussian_velocity, x, table[:3]))
    stopped = euler(gaussian_velocity, x, table, lambda index, state: (state, index < 2))
    assert torch.equal(stopped, seen[2])
    replaced = euler(gaussian_velocity, x, table, lambda index, state: (state + 1 if index == 1 else state, True))
    assert torch.equal(replaced, euler(gaussian_velocity, seen[1] + 1, table[2:]))
