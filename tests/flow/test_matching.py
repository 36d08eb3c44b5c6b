# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from verl_uae.flow.matching import NoiseDensity, draw_sigmas, flow_matching_loss, forward_noise
from verl_uae.seeding import generator, normal

COUNT = 100_000

DENSITIES = ("logit_normal", "mode", "cosmap", "sigma_sqrt", "uniform")


def diffusers_levels(density: NoiseDensity) -> torch.Tensor:
    """1 - u of diffusers' SD3 scripts, which use u as a place in a table that falls from 1 to 0."""
    u = compute_density_for_timestep_sampling(
        "none" if density.name == "uniform" else density.name,
        COUNT,
        logit_mean=density.logit_mean,
        logit_std=density.logit_std,
        mode_scale=density.mode_scale,
        generator=generator("diffusers", density.name),
    )
    return 1.0 - u


@pytest.mark.parametrize("name", DENSITIES)
def test_levels_are_distributed_as_in_diffusers(name: str) -> None:
    density = NoiseDensity(name)
    quantiles = torch.linspace(0.01, 0.99, 25)
    found = density.draw(COUNT, generator("ours", name)).quantile(quantiles)
    # Standard error of a quantile of 100,000 uniform numbers: at most 0.0016.
    torch.testing.assert_close(found, diffusers_levels(density).float().quantile(quantiles), atol=0.01, rtol=0)


def test_a_positive_mean_trains_more_noise() -> None:
    sigma = NoiseDensity(logit_mean=1.0, logit_std=0.5).draw(COUNT, generator("mean"))
    assert sigma.median() == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.005)


def test_the_shift_moves_the_median_by_its_formula() -> None:
    sigma = NoiseDensity(shift=3.0).draw(COUNT, generator("shift"))
    assert sigma.median() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=0.005)
    assert float(sigma.min()) >= 1e-3 and float(sigma.max()) <= 1.0


@pytest.mark.parametrize("name", DENSITIES)
def test_weights_are_those_of_diffusers(name: str) -> None:
    sigma = torch.linspace(0.01, 1.0, 50)
    expected = compute_loss_weighting_for_sd3(name, sigma)
    torch.testing.assert_close(NoiseDensity(name).weight(sigma), expected.expand_as(sigma))


def test_forward_noise_mixes_by_level() -> None:
    x0, noise = torch.full((3, 1, 2, 2), 4.0), torch.full((3, 1, 2, 2), -2.0)
    found = forward_noise(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert found[:, 0, 0, 0].tolist() == [4.0, 2.5, -2.0] and found.shape == x0.shape
    for sigma in (torch.zeros(2), torch.zeros(3, 1), torch.tensor(0.5)):
        with pytest.raises(ValueError, match="one number per sample"):
            forward_noise(x0, noise, sigma)
    with pytest.raises(ValueError, match="one shape"):
        forward_noise(x0, noise[:1], torch.zeros(3))


def test_the_loss_of_the_true_velocity_is_zero_and_of_another_one_its_mean_square() -> None:
    x0, noise = normal((3, 2, 4, 4), "x0"), normal((3, 2, 4, 4), "noise")
    weight = torch.tensor([1.0, 2.0, 0.0])
    assert flow_matching_loss(noise - x0, x0, noise, weight).tolist() == [0.0, 0.0, 0.0]
    found = flow_matching_loss(noise - x0 + 0.5, x0, noise, weight)
    torch.testing.assert_close(found, 0.25 * weight)
    # The path's derivative, by finite differences.
    a, b = (forward_noise(x0, noise, torch.full((3,), sigma)) for sigma in (0.4, 0.5))
    assert float(flow_matching_loss((b - a) / 0.1, x0, noise, torch.ones(3)).max()) < 1e-9


def test_half_precision_and_impossible_settings_are_refused() -> None:
    x0 = torch.zeros(1, 1, 2, 2)
    with pytest.raises(TypeError, match="float32"):
        flow_matching_loss(x0, x0.half(), x0, torch.ones(1))
    for wrong in ({"name": "beta"}, {"logit_std": 0.0}, {"shift": -1.0}, {"mode_scale": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("name", "density")):
            NoiseDensity(**wrong)


def test_drawn_levels_are_distinct_interior_entries_each_as_likely() -> None:
    table = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)
    generator = torch.Generator().manual_seed(3)
    draws = [draw_sigmas(table, 2, generator).tolist() for _ in range(4000)]
    assert all(first != second for first, second in draws)
    interior = torch.tensor(table[1:-1]).tolist()
    for level in interior:
        share = sum(level in drawn for drawn in draws) / len(draws)
        assert abs(share - 0.5) < 4.0 * (0.25 / len(draws)) ** 0.5
    assert {level for drawn in draws for level in drawn} == set(interior)
    again = draw_sigmas(table, 2, torch.Generator().manual_seed(3))
    assert again.tolist() == draws[0] and again.dtype == torch.float32
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"draw {count} of the 4"):
            draw_sigmas(table, count, generator)
