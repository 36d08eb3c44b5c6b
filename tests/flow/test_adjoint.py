# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verl_uae.flow.ode import Path, euler, euler_adjoint, euler_path
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
    start = euler_path(field, noise, SIGMAS).states[first]
    loss_of(euler(field, start, SIGMAS[first:])).backward()
    return [weight.grad for weight in net.parameters()], condition.grad


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_equals_autograd_through_the_unrolled_sampler(steps: int) -> None:
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    path = euler_path(field, noise, SIGMAS)
    last = path.states[-1].clone().requires_grad_()
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
    last = path.states[-1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(last), last)
    found = euler_adjoint(field, path, SIGMAS, gradient)
    direction = normal(tuple(noise.shape), "direction")
    up, down = (loss_of(euler_path(field, noise + e * direction, SIGMAS).states[-1]) for e in (1e-2, -1e-2))
    assert float((found * direction).sum()) == pytest.approx(float(up - down) / 2e-2, rel=1e-3)


def test_the_path_ends_where_euler_does_and_keeps_no_graph() -> None:
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    path = euler_path(field, noise, SIGMAS)
    assert len(path.states) == 6 and not any(x.requires_grad for x in path.states) and path.kept == []
    torch.testing.assert_close(path.states[-1], euler(field, noise, SIGMAS).detach(), rtol=0, atol=0)


@pytest.mark.parametrize(("steps", "keep"), [(5, 1), (5, 3), (5, 5), (2, 1), (2, 2)])
def test_kept_steps_change_no_bit_and_are_computed_once(steps: int, keep: int) -> None:
    """Each is a graph of its own, gone once its backward pass is done."""
    found, calls, waiting = [], [], []
    for kept in (0, keep):
        net, noise, condition = problem()
        count: list[float] = []

        def field(
            x: Tensor, sigma: Tensor, net: Net = net, condition: Tensor = condition, count: Any = count
        ) -> Tensor:
            count.append(float(sigma[0]))
            return net(x, sigma, condition)

        path = euler_path(field, noise, SIGMAS, keep=kept)
        assert len(path.kept) == kept and not any(x.requires_grad for x in path.states)
        last = path.states[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(last), last)
        graphs = [weakref.ref(velocity) for _, velocity in path.kept]
        heard: list[bool] = []
        back = euler_adjoint(field, path, SIGMAS, gradient, steps=steps, on_backward=heard.append)
        assert path.kept == [] and not any(graph() for graph in graphs)
        found.append([*path.states, back, condition.grad, *(weight.grad for weight in net.parameters())])
        calls.append(count)
        waiting.append(heard)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    levels = SIGMAS.tolist()[:-1]
    assert calls[0] == levels + levels[::-1][:steps] and calls[1] == levels + levels[::-1][keep:steps]
    assert waiting == [[False] * steps, [number + 1 < keep for number in range(steps)]]


def test_impossible_steps_and_foreign_paths_are_refused() -> None:
    net, noise, condition = problem()
    field = lambda x, sigma: net(x, sigma, condition)  # noqa: E731
    path = euler_path(field, noise, SIGMAS)
    for steps in (0, 6):
        with pytest.raises(ValueError, match=r"steps must lie in \[1, 5\]"):
            euler_adjoint(field, path, SIGMAS, path.states[-1], steps=steps)
    with pytest.raises(ValueError, match="the path 5"):
        euler_adjoint(field, Path(path.states[1:]), SIGMAS, path.states[-1])
    for keep in (-1, 6):
        with pytest.raises(ValueError, match=r"keep must lie in \[0, 5\]"):
            euler_path(field, noise, SIGMAS, keep=keep)
    with pytest.raises(ValueError, match=r"steps must lie in \[3, 5\], got 2"):
        euler_adjoint(field, euler_path(field, noise, SIGMAS, keep=3), SIGMAS, path.states[-1], steps=2)
