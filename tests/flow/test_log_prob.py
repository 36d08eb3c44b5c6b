# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from tests.flow.gaussian_toy import randn
from verl_uae.flow.kernels import gaussian_log_prob, require_fp32


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    mean = randn(5, 4, 8, 8, seed=0)
    return mean + 0.3 * randn(5, 4, 8, 8, seed=1), mean


@pytest.mark.parametrize("std", [0.057, 0.3, 0.917, 3.0])
def test_mean_and_sum_against_torch_distributions_in_fp64(std: float) -> None:
    x_next, mean = pair()
    reference = torch.distributions.Normal(mean.double(), std).log_prob(x_next.double())
    for reduction, expected in (("mean", reference.mean((1, 2, 3))), ("sum", reference.sum((1, 2, 3)))):
        found = gaussian_log_prob(x_next, mean, std, reduction)
        assert found.dtype == torch.float32 and found.shape == (5,)
        # Relative to the size of the terms, since their sum may come near 0.
        terms = reference.abs().mean() * (expected / reference.mean((1, 2, 3)))
        assert ((found - expected).abs() <= 1e-6 * terms.abs()).all()


@pytest.mark.parametrize("std", [0.057, 0.3, 0.917])
def test_raw_is_the_mean_times_twice_the_variance_up_to_a_constant(std: float) -> None:
    x_next, mean = pair()
    reference = torch.distributions.Normal(mean.double(), std).log_prob(x_next.double()).mean((1, 2, 3))
    at_mean = torch.distributions.Normal(0.0, std).log_prob(torch.tensor(0.0, dtype=torch.float64))
    found = gaussian_log_prob(x_next, mean, std, "raw")
    assert torch.allclose(found.double(), 2.0 * std**2 * (reference - at_mean), rtol=1e-6, atol=0.0)
    assert torch.equal(found, gaussian_log_prob(x_next, mean, 7.0, "raw"))


def test_samples_are_reduced_apart() -> None:
    x_next, mean = pair()
    together = gaussian_log_prob(x_next, mean, 0.3)
    alone = torch.cat([gaussian_log_prob(x_next[i : i + 1], mean[i : i + 1], 0.3) for i in range(5)])
    assert torch.equal(together, alone)


def test_what_happened_is_detached() -> None:
    x_next, mean = pair()
    x_next.requires_grad_()
    mean.requires_grad_()
    gaussian_log_prob(x_next, mean, 0.3, "sum").sum().backward()
    assert x_next.grad is None
    assert torch.allclose(mean.grad, (x_next - mean).detach() / 0.09, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "raw"])
def test_the_gradient_agrees_with_finite_differences_of_the_reference_in_fp64(reduction) -> None:
    x_next, mean = (tensor[:2, :1, :3, :3].contiguous() for tensor in pair())
    mean.requires_grad_()
    gaussian_log_prob(x_next, mean, 0.3, reduction).sum().backward()

    def reference(mean: torch.Tensor) -> float:
        if reduction == "raw":
            return -float((x_next.double() - mean).square().mean((1, 2, 3)).sum())
        log_prob = torch.distributions.Normal(mean, 0.3).log_prob(x_next.double())
        return float((log_prob.mean((1, 2, 3)) if reduction == "mean" else log_prob.sum((1, 2, 3))).sum())

    for index in range(mean.numel()):
        nudge = torch.zeros(mean.numel(), dtype=torch.float64)
        nudge[index] = 1e-5
        up, down = (reference(mean.detach().double() + sign * nudge.view_as(mean)) for sign in (1, -1))
        assert float(mean.grad.flatten()[index]) == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_than_fp32_are_refused_by_name(dtype: torch.dtype) -> None:
    x_next, mean = pair()
    with pytest.raises(TypeError, match=r"x_next_BCHW must be torch\.float32"):
        gaussian_log_prob(x_next.to(dtype), mean, 0.3)
    with pytest.raises(TypeError, match=r"mean_BCHW must be torch\.float32"):
        gaussian_log_prob(x_next, mean.to(dtype), 0.3)
    with pytest.raises(TypeError, match="second must be"):
        require_fp32(first=mean, second=mean.to(dtype))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_std_that_is_none_is_refused(std: float) -> None:
    for reduction in ("mean", "sum", "raw"):
        with pytest.raises(ValueError, match="positive std"):
            gaussian_log_prob(*pair(), std, reduction)


def test_unknown_reductions_and_broadcasts_are_refused() -> None:
    x_next, mean = pair()
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, raw"):
        gaussian_log_prob(x_next, mean, 0.3, "none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        gaussian_log_prob(x_next, mean[:1], 0.3)
