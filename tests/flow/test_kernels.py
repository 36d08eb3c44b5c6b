# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from tests.flow.gaussian_toy import PUBLISHED, randn, table_coefficients
from verl_uae.flow.config import KERNELS, TABLES
from verl_uae.flow.kernels import Coefficients, coefficients, gain, step, transition_mean
from verl_uae.flow.schedule import sigma_schedule

TABLE = sigma_schedule(10, 3.0).tolist()
STEPS = list(itertools.pairwise(TABLE))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("table", TABLES)
def test_without_noise_every_kernel_is_euler(kernel, table) -> None:
    sigmas = sigma_schedule(10, 3.0, table).tolist()
    for level in (0.0, 1e-9):
        for c, (sigma, sigma_next) in zip(
            table_coefficients(sigmas, kernel, level), itertools.pairwise(sigmas), strict=True
        ):
            assert (c.x, c.v) == pytest.approx((1.0, sigma_next - sigma), abs=1e-12)
            assert c.std < 1e-8 and (level > 0.0 or c.std == 0.0)


@pytest.mark.parametrize("eta", [0.2, 0.7, 0.8, 0.9, 1.0])
def test_cps_keeps_data_and_noise_in_proportion(eta: float) -> None:
    """Written in predicted data and noise, the data weigh 1 - sigma', the two noises sigma' in quadrature."""
    for sigma, sigma_next in STEPS:
        c = coefficients("cps", sigma, sigma_next, eta, TABLE[1])
        # x = (1 - sigma) x0 + sigma x1, v = x1 - x0: the mean is data * x0 + noise * x1.
        data = c.x * (1.0 - sigma) - c.v
        noise = c.x * sigma + c.v
        assert data == pytest.approx(1.0 - sigma_next, abs=1e-12)
        assert math.hypot(noise, c.std) == pytest.approx(sigma_next, abs=1e-12)
        assert noise > -1e-12


@pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
def test_flow_sde_identity_below_pure_noise(a: float) -> None:
    for sigma, sigma_next in STEPS[1:]:
        dt = sigma_next - sigma
        c = coefficients("flow_sde", sigma, sigma_next, a, TABLE[1])
        assert c.v == pytest.approx((1.0 + a**2 / 2.0) * dt, abs=1e-12)
        assert c.x == pytest.approx(1.0 + a**2 * dt / (2.0 * (1.0 - sigma)), abs=1e-12)
        assert c.std**2 == pytest.approx(a**2 * sigma * -dt / (1.0 - sigma), abs=1e-12)


@pytest.mark.parametrize("kernel", ["flow_sde", "dance"])
def test_sde_kernels_are_euler_maruyama_of_the_reverse_sde(kernel) -> None:
    """dx = (v + s^2 / (2 sigma) (x + (1 - sigma) v)) dt + s dw, from the score -(x + (1 - sigma) v) / sigma."""
    for sigma, sigma_next in STEPS[1:]:
        s = 0.6 * (math.sqrt(sigma / (1.0 - sigma)) if kernel == "flow_sde" else 1.0)
        c = coefficients(kernel, sigma, sigma_next, 0.6, TABLE[1])
        for x, v in ((1.0, 0.0), (0.0, 1.0), (-0.4, 2.3)):
            drift = v + s**2 / (2.0 * sigma) * (x + (1.0 - sigma) * v)
            assert c.x * x + c.v * v == pytest.approx(x + drift * (sigma_next - sigma), abs=1e-12)
        assert c.std == pytest.approx(s * math.sqrt(sigma - sigma_next), abs=1e-12)


def test_flow_sde_at_pure_noise_takes_the_second_noise_level() -> None:
    c = coefficients("flow_sde", 1.0, TABLE[1], 0.7, TABLE[1])
    # s^2 = a^2 / (1 - sigma_1) and the step is 1 - sigma_1, so the std is a and the latent loses a^2 / 2.
    assert (c.x, c.v, c.std) == pytest.approx((1.0 - 0.49 / 2.0, TABLE[1] - 1.0, 0.7), abs=1e-12)
    other = coefficients("flow_sde", 1.0, TABLE[1], 0.7, 0.9)
    assert other.std == pytest.approx(0.7 * math.sqrt((1.0 - TABLE[1]) / 0.1), abs=1e-12)
    later = [coefficients("flow_sde", 0.999, 0.8, 0.7, first) for first in (0.0, 0.5, 0.99)]
    assert later[0] == later[1] == later[2]


#: (std, gain) of steps 0 to 9 on the table above, tabulated in the survey of the Flow-GRPO family; last digit rounded.
PER_STEP = {
    "flow_sde": (
        [0.700, 0.738, 0.532, 0.442, 0.388, 0.350, 0.320, 0.291, 0.256, 0.202],
        [0.051, 0.070, 0.113, 0.160, 0.219, 0.296, 0.406, 0.574, 0.868, 1.54],
    ),
    "cps": (
        [0.917, 0.878, 0.832, 0.778, 0.713, 0.634, 0.535, 0.408, 0.238, 0.0],
        [0.039, 0.073, 0.114, 0.164, 0.228, 0.313, 0.437, 0.646, 1.17, math.inf],
    ),
    "dance": (
        [0.057, 0.061, 0.066, 0.072, 0.078, 0.087, 0.097, 0.110, 0.127, 0.150],
        [0.630, 0.678, 0.734, 0.800, 0.879, 0.977, 1.10, 1.26, 1.49, 1.89],
    ),
}


@pytest.mark.parametrize(("kernel", "level"), PUBLISHED)
def test_std_and_gain_of_every_step_have_their_tabulated_values(kernel, level: float) -> None:
    steps = table_coefficients(TABLE, kernel, level)
    stds, gains = PER_STEP[kernel]
    assert [c.std for c in steps] == pytest.approx(stds, abs=1.1e-3)
    assert [gain(c) for c in steps] == pytest.approx(gains, rel=0.01, abs=6e-4)


def test_coefficients_are_python_floats_and_carry_no_dtype() -> None:
    for kernel in KERNELS:
        c = coefficients(kernel, *STEPS[3], 0.5, TABLE[1])
        assert all(type(value) is float for value in dataclasses.astuple(c))
    x, c = randn(2, 3, 4, 4, seed=0), coefficients("cps", *STEPS[3], 0.8, TABLE[1])
    taken = step(c, x, x, noise_BCHW=randn(2, 3, 4, 4, seed=1))
    assert taken.x_next_BCHW.dtype == taken.mean_BCHW.dtype == taken.log_prob_B.dtype == torch.float32
    assert taken.log_prob_B.shape == (2,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_velocity_is_taken_to_fp32_before_use(dtype: torch.dtype) -> None:
    c = coefficients("flow_sde", *STEPS[4], 0.7, TABLE[1])
    x, noise, v = (randn(2, 3, 4, 4, seed=seed) for seed in range(3))
    low = v.to(dtype)
    assert torch.equal(
        step(c, x, low, noise_BCHW=noise).x_next_BCHW, step(c, x, low.float(), noise_BCHW=noise).x_next_BCHW
    )
    exact = c.x * x.double() + c.v * low.double()
    assert (transition_mean(c, x, low).double() - exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["x_BCHW", "noise_BCHW", "x_next_BCHW"])
def test_latents_and_noise_of_another_dtype_than_fp32_are_refused(dtype: torch.dtype, name: str) -> None:
    x = randn(2, 3, 4, 4, seed=0)
    arguments = {"x_BCHW": x, "v_BCHW": x, **({"noise_BCHW": x} if name == "noise_BCHW" else {"x_next_BCHW": x})}
    arguments[name] = x.to(dtype)
    with pytest.raises(TypeError, match=f"{name} must be torch.float32"):
        step(Coefficients(1.0, -0.1, 0.3), **arguments)


def test_sampling_and_scoring_are_the_same_arithmetic() -> None:
    c = coefficients("cps", *STEPS[2], 0.8, TABLE[1])
    x, v, noise = (randn(3, 2, 8, 8, seed=seed) for seed in range(3))
    for reduction in ("mean", "sum", "raw"):
        taken = step(c, x, v, noise_BCHW=noise, reduction=reduction)
        scored = step(c, x, v, x_next_BCHW=taken.x_next_BCHW, reduction=reduction)
        assert torch.equal(scored.x_next_BCHW, taken.x_next_BCHW) and torch.equal(scored.mean_BCHW, taken.mean_BCHW)
        assert torch.equal(scored.log_prob_B, taken.log_prob_B)


def test_the_gradient_reaches_the_velocity_through_the_mean_alone() -> None:
    """Were the sample not detached, the noise would be all that is left and the gradient 0."""
    c = coefficients("flow_sde", *STEPS[5], 0.7, TABLE[1])
    x, v, noise = (randn(3, 2, 8, 8, seed=seed) for seed in range(3))
    v.requires_grad_()
    taken = step(c, x, v, noise_BCHW=noise)
    (gradient,) = torch.autograd.grad(taken.log_prob_B.sum(), v)
    # d/dv of -(x' - mean)^2 / (2 std^2) / D, with x' - mean = std * noise: the gain times the noise.
    assert torch.allclose(gradient, -gain(c) * noise / v[0].numel(), atol=1e-6)
    assert not taken.x_next_BCHW.requires_grad and taken.mean_BCHW.requires_grad


def test_a_deterministic_step_has_no_log_probability() -> None:
    c = coefficients("ode", *STEPS[0], 0.0, TABLE[1])
    x = randn(1, 1, 2, 2, seed=0)
    for arguments in ({"noise_BCHW": x}, {"x_next_BCHW": x}):
        with pytest.raises(ValueError, match="no log-probability"):
            step(c, x, x, **arguments)
    assert gain(c) == math.inf
    assert torch.equal(transition_mean(c, x, x), x + (STEPS[0][1] - STEPS[0][0]) * x)


def test_misuse_of_step_is_refused() -> None:
    c, x = Coefficients(1.0, -0.1, 0.3), randn(2, 1, 2, 2, seed=0)
    for arguments in ({}, {"noise_BCHW": x, "x_next_BCHW": x}):
        with pytest.raises(ValueError, match="exactly one"):
            step(c, x, x, **arguments)
    # Shapes that would broadcast in silence.
    with pytest.raises(ValueError, match="velocity"):
        step(c, x, x[:1], noise_BCHW=x)
    with pytest.raises(ValueError, match="noise of shape"):
        step(c, x, x, noise_BCHW=x[:1])
    with pytest.raises(ValueError, match="x_next has shape"):
        step(c, x, x, x_next_BCHW=x[:1])
    with pytest.raises(ValueError, match=r"velocity torch\.int64"):
        step(c, x, x.long(), noise_BCHW=x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("euler", 0.5, 0.4, 0.7, 0.9), "kernel must be one of cps, flow_sde, dance, ode, got 'euler'"),
        (("cps", 0.4, 0.5, 0.7, 0.9), "from 0.4 to 0.5"),
        (("cps", 0.5, 0.5, 0.7, 0.9), "noise levels"),
        (("cps", 1.1, 0.5, 0.7, 0.9), "noise levels"),
        (("cps", 0.5, -0.1, 0.7, 0.9), "noise levels"),
        (("cps", math.nan, 0.1, 0.7, 0.9), "noise levels"),
        (("cps", 0.5, 0.4, 1.01, 0.9), "noise_level of cps must be from 0 to 1"),
        (("dance", 0.5, 0.4, -0.1, 0.9), "noise_level of dance"),
        (("flow_sde", 0.5, 0.4, math.nan, 0.9), "noise_level of flow_sde"),
        (("flow_sde", 1.0, 0.9, 0.7, 1.0), "sigma_first"),
    ],
)
def test_impossible_steps_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coefficients(*arguments)
