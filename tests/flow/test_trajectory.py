# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import io

import pytest
import torch

from tests.flow.gaussian_toy import PUBLISHED, randn
from verl_uae.flow.ode import euler
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.flow.trajectory import Trajectory, Twins, sample_trajectory, score_step

TABLE = sigma_schedule(10, 3.0)
WINDOW = (1, 2, 3)
CHANNELS, SIDE = 4, 16


def make(kernel="cps", noise_level: float = 0.8, window=WINDOW, **change) -> SamplingPlan:
    return SamplingPlan(tuple(TABLE.tolist()), kernel, noise_level, window, **change)


class Network(torch.nn.Module):
    """A small convolution that sees sigma, in any dtype."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(0.2 * randn(CHANNELS, CHANNELS, 3, 3, seed=9).to(dtype))

    def forward(self, x_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
        assert x_BCHW.dtype == sigma_B.dtype == torch.float32 and sigma_B.shape == x_BCHW.shape[:1]
        scaled = (x_BCHW * (1.0 + sigma_B.view(-1, 1, 1, 1))).to(self.weight.dtype)
        return torch.tanh(torch.nn.functional.conv2d(scaled, self.weight, padding=1))


def start(batch: int = 3) -> torch.Tensor:
    return randn(batch, CHANNELS, SIDE, SIDE, seed=1)


def step_noise(index: int) -> torch.Tensor:
    return randn(3, CHANNELS, SIDE, SIDE, seed=100 + index)


def sample(plan: SamplingPlan, network: Network | None = None) -> Trajectory:
    return sample_trajectory(network or Network(), start(), plan, step_noise)


@pytest.mark.parametrize("reduction", ["mean", "sum", "raw"])
@pytest.mark.parametrize(("kernel", "level"), PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_gives_the_sampled_log_probability_bit_for_bit(kernel, level, reduction, dtype) -> None:
    plan, network = make(kernel, level, reduction=reduction), Network(dtype)
    drawn = sample(plan, network)
    for k, index in enumerate(plan.window):
        again = score_step(network, drawn.x_BKCHW[:, k], drawn.x_next_BKCHW[:, k], plan, index)
        assert torch.equal(again.log_prob_B, drawn.log_prob_BK[:, k])
        assert torch.equal(again.mean_BCHW, drawn.mean_BKCHW[:, k])
        assert torch.equal(again.x_next_BCHW, drawn.x_next_BKCHW[:, k])


def test_replay_survives_fp32_storage() -> None:
    plan, network, file = make(), Network(), io.BytesIO()
    drawn = sample(plan, network)
    torch.save({field.name: getattr(drawn, field.name) for field in dataclasses.fields(drawn)}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    for k, index in enumerate(plan.window):
        again = score_step(network, stored["x_BKCHW"][:, k], stored["x_next_BKCHW"][:, k], plan, index)
        assert (again.log_prob_B - drawn.log_prob_BK[:, k]).abs().max() <= 1e-6


@pytest.mark.parametrize(("kernel", "level"), PUBLISHED)
def test_a_result_that_was_rounded_after_scoring_is_off_by_more_than_a_clip_range(kernel, level) -> None:
    plan, network = make(kernel, level), Network()
    drawn = sample(plan, network)
    for k, index in enumerate(plan.window):
        x, x_next = drawn.x_BKCHW[:, k], drawn.x_next_BKCHW[:, k]
        rounded = score_step(network, x, x_next.bfloat16().float(), plan, index)
        shift = (rounded.log_prob_B - drawn.log_prob_BK[:, k]).abs()
        assert shift.max() > 1e-5
        for bad in ((x.bfloat16(), x_next), (x, x_next.bfloat16())):
            with pytest.raises(TypeError, match=r"must be torch\.float32, got torch\.bfloat16"):
                score_step(lambda x_BCHW, sigma_B: x_BCHW, *bad, plan, index)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_initial_and_step_noise_of_another_dtype_than_fp32_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"noise_BCHW must be torch\.float32"):
        sample_trajectory(Network(), start().to(dtype), make(), step_noise)
    with pytest.raises(TypeError, match=r"noise_BCHW must be torch\.float32"):
        sample_trajectory(Network(), start(), make(), lambda index: step_noise(index).to(dtype))


def test_an_empty_window_is_the_ode_bit_for_bit() -> None:
    drawn = sample(make(window=()))
    with torch.no_grad():
        assert torch.equal(drawn.final_BCHW, euler(Network(), start(), TABLE))
    assert drawn.x_BKCHW.shape == drawn.mean_BKCHW.shape == (3, 0, CHANNELS, SIDE, SIDE)
    assert drawn.log_prob_BK.shape == (3, 0)


def test_around_the_window_the_ode_runs_on() -> None:
    drawn, network = sample(make()), Network()
    with torch.no_grad():
        assert torch.equal(drawn.x_BKCHW[:, 0], euler(network, start(), TABLE[:2]))
        assert torch.equal(drawn.x_BKCHW[:, 1:], drawn.x_next_BKCHW[:, :-1])
        assert torch.equal(drawn.final_BCHW, euler(network, drawn.x_next_BKCHW[:, -1], TABLE[4:]))


def test_noise_is_asked_for_in_window_steps_only_and_scales_with_the_std() -> None:
    asked: list[int] = []

    def recording(index: int) -> torch.Tensor:
        asked.append(index)
        return step_noise(index)

    plan = make("flow_sde", 0.7, window=(0, 2, 5))
    drawn = sample_trajectory(Network(), start(), plan, recording)
    assert asked == [0, 2, 5]
    for k, index in enumerate(asked):
        z = (drawn.x_next_BKCHW[:, k] - drawn.mean_BKCHW[:, k]) / plan.coefficients(index).std
        assert torch.allclose(z, step_noise(index), atol=1e-5)


def test_sampling_keeps_no_graph_and_everything_is_fp32() -> None:
    drawn = sample(make(), Network(torch.bfloat16))
    for field in dataclasses.fields(drawn):
        tensor = getattr(drawn, field.name)
        assert tensor.dtype == torch.float32 and not tensor.requires_grad and torch.isfinite(tensor).all()
    assert drawn.log_prob_BK.shape == (3, 3) and drawn.x_BKCHW.shape == (3, 3, CHANNELS, SIDE, SIDE)


def test_scoring_has_a_gradient_at_ratio_one() -> None:
    plan, network = make(), Network()
    drawn = sample(plan, network)
    scored = score_step(network, drawn.x_BKCHW[:, 1], drawn.x_next_BKCHW[:, 1], plan, 2)
    ratio_B = (scored.log_prob_B - drawn.log_prob_BK[:, 1]).exp()
    assert torch.equal(ratio_B, torch.ones(3))
    ratio_B.sum().backward()
    assert network.weight.grad is not None and network.weight.grad.norm() > 0.0


@pytest.mark.parametrize("index", [-1, 0, 4, 9, 10])
def test_a_deterministic_step_cannot_be_scored(index: int) -> None:
    with pytest.raises(ValueError, match=rf"step {index} is not in the window \(1, 2, 3\)"):
        score_step(Network(), start(), start(), make(), index)


@pytest.mark.parametrize(
    ("names", "valid", "first", "kind"),
    [
        ("aabab", (), (0, 2), (0, 0, 1, 0, 1)),
        ("abc", (), (0, 1, 2), (0, 1, 2)),
        ("aabb", (False, True, True, False), (1, 2), (0, 0, 1, 1)),
        ("aaab", (False, False, True, False), (2, 3), (0, 0, 0, 1)),
        ("aa", (False, False), (0,), (0, 0)),
    ],
)
def test_twins_are_rows_of_one_name_and_one_that_is_valid_stands_for_them(names, valid, first, kind) -> None:
    assert Twins.of(names, valid) == Twins(first, kind)


def test_the_gradient_of_one_is_the_sum_over_its_twins() -> None:
    network, twins = Network(), Twins.of("abab")
    x_BCHW, weight_BCHW = start(2)[list(twins.kind)], randn(4, CHANNELS, SIDE, SIDE, seed=4)
    sigma_B, gradients = torch.full((4,), 0.7), []
    for velocity in (network, twins.velocity(network)):
        network.zero_grad()
        (velocity(x_BCHW, sigma_B) * weight_BCHW).sum().backward()
        gradients.append(network.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-5) and gradients[0].abs().max() > 1


@pytest.mark.parametrize("window", [(0, 1), WINDOW, (2, 5)])
def test_a_prefix_is_asked_up_to_the_first_stochastic_step(window: tuple[int, ...]) -> None:
    plan, network, asked = make(window=window), Network(), []

    def once(x_BCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
        asked.append((len(x_BCHW), float(sigma_B[0])))
        return network(x_BCHW, sigma_B)

    noise_BCHW = start(1).expand(3, -1, -1, -1)
    drawn = sample_trajectory(network, noise_BCHW, plan, step_noise, Twins.of("aaa").velocity(once))
    assert asked == [(1, plan.sigmas[index]) for index in range(window[0] + 1)]
    whole = sample_trajectory(network, noise_BCHW, plan, step_noise)
    for name in Trajectory.__dataclass_fields__:
        assert torch.allclose(getattr(drawn, name), getattr(whole, name), atol=1e-5), name
    assert (drawn.final_BCHW[0] - drawn.final_BCHW[1]).abs().max() > 0.1
