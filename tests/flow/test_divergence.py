# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from tests.flow.gaussian_toy import PUBLISHED, randn
from verl_uae.flow.divergence import norm_excess, reference_penalty, transition_kl
from verl_uae.flow.kernels import coefficients, gain, gaussian_log_prob, step, transition_mean
from verl_uae.flow.schedule import sigma_schedule

TABLE = sigma_schedule(10, 3.0).tolist()
STEPS = list(itertools.pairwise(TABLE))
SHAPE = (3, 2, 8, 8)


def penalty(form: str, kernel: str, level: float, index: int, dv: torch.Tensor) -> torch.Tensor:
    """Of two policies whose velocities differ by dv."""
    c = coefficients(kernel, *STEPS[index], level, TABLE[1])  # type: ignore[arg-type]
    x, v = randn(*dv.shape, seed=1), randn(*dv.shape, seed=2)
    means = transition_mean(c, x, v + dv), transition_mean(c, x, v)
    sigma, sigma_next = STEPS[index]
    return reference_penalty(form, *means, c.std, sigma - sigma_next, v + dv, v, sigma)  # type: ignore[arg-type]


def test_the_divergence_against_torch_distributions_and_both_ways() -> None:
    a, b = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    for std in (0.057, 0.5, 2.0):
        p, q = (torch.distributions.Normal(mean.double(), std) for mean in (a, b))
        expected = torch.distributions.kl_divergence(p, q).mean((1, 2, 3))
        assert torch.allclose(transition_kl(a, b, std).double(), expected, rtol=1e-6, atol=0.0)
        assert torch.equal(transition_kl(a, b, std), transition_kl(b, a, std))
    assert torch.equal(transition_kl(a, a, 0.5), torch.zeros(3))


@pytest.mark.parametrize(("kernel", "level"), PUBLISHED)
def test_the_divergence_is_the_monte_carlo_mean_of_the_log_ratio(kernel, level: float) -> None:
    """E_p[log p - log q] with the sampler's own steps, to 1 % and four standard errors."""
    c = coefficients(kernel, *STEPS[5], level, TABLE[1])
    shape = (4000, 1, 16, 16)
    x = randn(1, 1, 16, 16, seed=1).expand(shape).contiguous()
    v, dv = 0.5 * x, 0.5 / gain(c)
    taken = step(c, x, v, noise_BCHW=randn(*shape, seed=2))
    other = step(c, x, v + dv, x_next_BCHW=taken.x_next_BCHW)
    log_ratio = (taken.log_prob_B - other.log_prob_B).double()
    k = transition_kl(taken.mean_BCHW, other.mean_BCHW, c.std)[0].item()
    assert k == pytest.approx((gain(c) * dv) ** 2 / 2.0, rel=1e-5)
    deviation = abs(log_ratio.mean().item() - k)
    assert deviation < 0.01 * k and deviation < 4.0 * log_ratio.std().item() / len(log_ratio) ** 0.5


@pytest.mark.parametrize("index", range(1, 10))
@pytest.mark.parametrize("a", [0.3, 0.7, 1.0])
def test_flow_sde_penalty_in_closed_form(index: int, a: float) -> None:
    """(1 + a^2/2)^2 / (2 a^2) = 1.582 for a = 0.7, times D (1 - sigma) / sigma mean(dv^2)."""
    sigma, sigma_next = STEPS[index]
    dv = 0.1 * randn(*SHAPE, seed=3)
    factor = (1.0 + a**2 / 2.0) ** 2 / (2.0 * a**2)
    if a == 0.7:
        assert factor == pytest.approx(1.582, abs=5e-4)
    expected = factor * (sigma - sigma_next) * (1.0 - sigma) / sigma * dv.double().square().mean((1, 2, 3))
    found = penalty("exact", "flow_sde", a, index, dv)
    # The means differ by less than they are large, which costs fp32 digits.
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("index", range(1, 10))
@pytest.mark.parametrize("a", [0.3, 0.7, 1.0])
def test_flow_sde_penalty_in_closed_form_in_fp64(index: int, a: float) -> None:
    sigma, sigma_next = STEPS[index]
    c = coefficients("flow_sde", sigma, sigma_next, a, TABLE[1])
    x, v, dv = (randn(*SHAPE, seed=seed).double() for seed in (1, 2, 3))
    found = transition_kl(c.x * x + c.v * (v + 0.1 * dv), c.x * x + c.v * v, c.std)
    factor = (1.0 + a**2 / 2.0) ** 2 / (2.0 * a**2) * (sigma - sigma_next) * (1.0 - sigma) / sigma
    assert torch.allclose(found, factor * (0.1 * dv).square().mean((1, 2, 3)), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("form", ["exact", "flow_grpo", "velocity", "x0"])
def test_the_gradient_of_every_penalty_agrees_with_finite_differences(form) -> None:
    c, (sigma, sigma_next) = coefficients("cps", *STEPS[3], 0.8, TABLE[1]), STEPS[3]
    x, v, ref = (randn(2, 1, 3, 3, seed=seed).double() for seed in (1, 2, 3))

    def found(velocity: torch.Tensor) -> torch.Tensor:
        means = c.x * x + c.v * velocity, c.x * x + c.v * ref
        return reference_penalty(form, *means, c.std, sigma - sigma_next, velocity, ref, sigma)

    assert torch.autograd.gradcheck(found, v.requires_grad_(), eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("kernel", "level"), PUBLISHED)
def test_the_flow_grpo_form_is_the_exact_one_times_the_step_size(kernel, level: float) -> None:
    dv = 0.1 * randn(*SHAPE, seed=3)
    for index in range(9):
        sigma, sigma_next = STEPS[index]
        exact = penalty("exact", kernel, level, index, dv)
        assert torch.allclose(penalty("flow_grpo", kernel, level, index, dv), (sigma - sigma_next) * exact, rtol=1e-6)


def test_the_flow_grpo_form_divides_by_the_diffusion_coefficient() -> None:
    """mean(d^2) / (2 s^2), s = a sqrt(sigma / (1 - sigma)), as published."""
    sigma, sigma_next = STEPS[4]
    dv = 0.1 * randn(*SHAPE, seed=3)
    dmean = (1.0 + 0.7**2 / 2.0) * (sigma - sigma_next) * dv.double()
    expected = dmean.square().mean((1, 2, 3)) / (2.0 * 0.7**2 * sigma / (1.0 - sigma))
    assert torch.allclose(penalty("flow_grpo", "flow_sde", 0.7, 4, dv).double(), expected, rtol=1e-4)


def test_velocity_and_x0_forms() -> None:
    dv, index = 0.1 * randn(*SHAPE, seed=3), 6
    x, v, sigma = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2), STEPS[6][0]
    expected = dv.double().square().mean((1, 2, 3))
    assert torch.allclose(penalty("velocity", "cps", 0.8, index, dv).double(), expected, rtol=1e-5)
    of_data = ((x - sigma * (v + dv)) - (x - sigma * v)).double().square().mean((1, 2, 3))
    assert torch.allclose(penalty("x0", "cps", 0.8, index, dv).double(), of_data, rtol=1e-4)


@pytest.mark.parametrize("form", ["exact", "flow_grpo", "velocity", "x0"])
def test_the_penalty_pulls_the_policy_and_never_the_reference(form) -> None:
    c, (sigma, sigma_next) = coefficients("cps", *STEPS[3], 0.8, TABLE[1]), STEPS[3]
    x = randn(*SHAPE, seed=1)
    v, ref = randn(*SHAPE, seed=2).requires_grad_(), randn(*SHAPE, seed=3).requires_grad_()
    means = transition_mean(c, x, v), transition_mean(c, x, ref)
    found = reference_penalty(form, *means, c.std, sigma - sigma_next, v, ref, sigma)
    assert found.shape == (3,) and found.dtype == torch.float32
    found.sum().backward()
    assert ref.grad is None and v.grad is not None
    # Downhill is towards the reference, in every element.
    assert (v.grad * (v - ref) > 0.0).all()


@pytest.mark.parametrize("form", ["velocity", "x0"])
def test_bf16_velocities_are_compared_in_fp32(form) -> None:
    v, ref = randn(*SHAPE, seed=2).bfloat16(), randn(*SHAPE, seed=3).bfloat16()
    x = randn(*SHAPE, seed=1)
    low = reference_penalty(form, x, x, 0.5, 0.1, v, ref, 0.8)
    assert low.dtype == torch.float32
    assert torch.equal(low, reference_penalty(form, x, x, 0.5, 0.1, v.float(), ref.float(), 0.8))


@pytest.mark.parametrize("k", [1e-3, 1e-2])
def test_the_log_ratio_has_mean_minus_k_and_variance_2k_over_d(k: float) -> None:
    """Mean-reduced log-ratio on samples of the old policy: what clip ranges and ratio metrics are about."""
    dims, std, rounds = 1024, 0.4, 4
    old = torch.zeros(2500, 1, 32, 32)
    shift = randn(1, 1, 32, 32, seed=5)
    shift *= std * (2.0 * k) ** 0.5 / shift.square().mean().sqrt()
    log_ratios = []
    for seed in range(rounds):
        x_next = old + std * randn(*old.shape, seed=10 + seed)
        new = (old + shift).contiguous()
        log_ratios.append(gaussian_log_prob(x_next, new, std) - gaussian_log_prob(x_next, old, std))
        assert torch.allclose(transition_kl(new, old, std), torch.tensor(k), rtol=1e-4)
    log_ratio = torch.cat(log_ratios).double()
    assert log_ratio.var().item() == pytest.approx(2.0 * k / dims, rel=0.05)
    assert log_ratio.mean().item() == pytest.approx(-k, rel=0.05)


def test_the_hinge_sees_only_what_is_longer_than_the_reference() -> None:
    """Lengths 1.5, 1 and 0.5 times that of the reference, whose root mean square is 2; the gradient is along v."""
    reference = randn(*SHAPE, seed=1).double()
    reference *= 2.0 / reference.square().mean((1, 2, 3), keepdim=True).sqrt()
    velocity = reference.flip(1) * torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)[:, None, None, None]
    velocity = velocity.clone().requires_grad_()
    held = reference.clone().requires_grad_()
    found = norm_excess(velocity, held)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0)
    gradient, none = torch.autograd.grad(found.sum(), [velocity, held], allow_unused=True)
    # d rms / dv = v / (n rms), rms = 3.
    torch.testing.assert_close(gradient[0], velocity[0].detach() / (128 * 3.0))
    assert none is None and not gradient[2].any()
    same = norm_excess(reference.requires_grad_(), reference.detach())
    assert not same.any() and not torch.autograd.grad(same.sum(), reference)[0].any()
    assert norm_excess(velocity.bfloat16(), held.bfloat16()).dtype == torch.float32
    zero = torch.zeros(1, 1, 2, 2, requires_grad=True)
    assert torch.autograd.grad(norm_excess(zero, zero.detach()).sum(), zero)[0].isfinite().all()


def test_misuse_is_refused() -> None:
    x = randn(*SHAPE, seed=1)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=r"means must be torch\.float32"):
            transition_kl(x.to(dtype), x.to(dtype), 0.5)
        with pytest.raises(TypeError, match="means must be"):
            transition_kl(x, x.to(dtype), 0.5)
    for std in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive std"):
            transition_kl(x, x, std)
    with pytest.raises(ValueError, match="means of shapes"):
        transition_kl(x, x[:1], 0.5)
    with pytest.raises(ValueError, match="velocities"):
        reference_penalty("velocity", x, x, 0.5, 0.1, x, x[:1], 0.8)
    with pytest.raises(ValueError, match=r"reference_kl\.form must be one of exact, flow_grpo, velocity, x0"):
        reference_penalty("kl", x, x, 0.5, 0.1, x, x, 0.8)  # type: ignore[arg-type]
