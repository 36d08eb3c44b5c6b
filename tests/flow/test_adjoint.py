# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from verl_uae.flow.ode import euler, euler_adjoint, euler_path
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.seeding import normal

SIGMAS = sigma_schedule(5, 3.0)


class Net(nn.Module):
    """A velocity with weights, a condition and curvature in x and sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                weight.copy_(0.3 * normal(tuple(weight.shape), "net", name))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        return torch.tanh(self.conv(x) + condition[:, :, None, None] * sigma[:, None, None, None])


def problem() -> tuple[Net, Tensor, Tensor]:
    return Net(), normal((3, 2, 4, 4), "noise"), normal((3, 2), "condition").requires_grad_()


def loss_of(x: Tensor) -> Tensor:
    return (x.square() * normal(tuple(x.shape), "loss")).sum()


def unrolled(steps: int) -> tuple[list[Tensor], Tensor]:
    """Gradients of weights and condition by autograd through the last steps."""
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    first = len(SIGMAS) - 1 - steps
    start = euler_path(field, noise, SIGMAS)[first]
    loss_of(euler(field, start, SIGMAS[first:])).backward()
    return [weight.grad for weight in net.parameters()], condition.grad


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_equals_autograd_through_the_unrolled_sampler(steps: int) -> None:
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    path = euler_path(field, noise, SIGMAS)
    last = path[-1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(last), last)
    euler_adjoint(field, path, SIGMAS, gradient, steps=steps)
    weights, states = unrolled(steps)
    for weight, expected in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(condition.grad, states, rtol=1e-5, atol=1e-6)


def test_the_gradient_at_the_noise_is_the_finite_difference() -> None:
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    path = euler_path(field, noise, SIGMAS)
    last = path[-1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(last), last)
    found = euler_adjoint(field, path, SIGMAS, gradient)
    direction = normal(tuple(noise.shape), "direction")
    up, down = (loss_of(euler_path(field, noise + e * direction, SIGMAS)[-1]) for e in (1e-2, -1e-2))
    assert float((found * direction).sum()) == pytest.approx(float(up - down) / 2e-2, rel=1e-3)


def test_the_path_ends_where_euler_does_and_keeps_no_graph() -> None:
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    path = euler_path(field, noise, SIGMAS)
    assert len(path) == 6 and not any(x.requires_grad for x in path)
    torch.testing.assert_close(path[-1], euler(field, noise, SIGMAS).detach(), rtol=0, atol=0)


def test_impossible_steps_and_foreign_paths_are_refused() -> None:
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    path = euler_path(field, noise, SIGMAS)
    for steps in (0, 6):
        with pytest.raises(ValueError, match=r"steps must lie in \[1, 5\]"):
            euler_adjoint(field, path, SIGMAS, path[-1], steps=steps)
    with pytest.raises(ValueError, match="the path 5"):
        euler_adjoint(field, path[1:], SIGMAS, path[-1])
