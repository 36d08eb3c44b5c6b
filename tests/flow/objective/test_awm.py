# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.flow.objective.cases import forward_inputs
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import bind_objective

#: w(m, sigma) as plain Python, and its slope in m.
WEIGHTED = {
    "uniform": (lambda m, s: m, lambda m, s: 1.0),
    "sigma": (lambda m, s: s * m, lambda m, s: s),
    "sigma_squared": (lambda m, s: s * s * m, lambda m, s: s * s),
    "huber": (lambda m, s: s * ((m + 1e-10) ** 0.5 - 1e-5), lambda m, s: s / (2 * (m + 1e-10) ** 0.5)),
    "ghuber": (
        lambda m, s: s * ((m + 1e-10) ** 0.25 - 1e-10**0.25) / 0.25,
        lambda m, s: s * (m + 1e-10) ** -0.75,
    ),
}


@pytest.mark.parametrize("weighting", WEIGHTED)
@pytest.mark.parametrize(("width", "old_kl"), [(1.0, 1.0), (0.05, 0.0)])
def test_loss_and_gradient_against_the_formulas(weighting, width, old_kl) -> None:
    """Sample by sample in Python; the derivative by hand: zero where the clip acts, else -A' r dl/dv."""
    inputs = forward_inputs()
    params = {"weighting": weighting, "clip_low": width, "clip_high": width, "old_kl": old_kl}
    output = bind_objective("awm", params)(inputs)
    (gradient,) = torch.autograd.grad(output.loss_B.sum(), inputs.velocity_BCHW)
    value, slope = WEIGHTED[weighting]
    clipped = 0
    for b in range(8):
        v, old, sigma = inputs.velocity_BCHW[b].detach(), inputs.old_velocity_BCHW[b], inputs.sigma_B[b].item()
        target = inputs.noise_BCHW[b] - inputs.x0_BCHW[b]
        m, m_old = ((v - target) ** 2).mean().item(), ((old - target) ** 2).mean().item()
        ratio = torch.tensor(value(m_old, sigma) - value(m, sigma), dtype=torch.float64).exp().item()
        share = min(max(inputs.advantage_B[b].item() / 5.0, -1.0), 1.0)
        cut = min(max(ratio, 1.0 - width), 1.0 + width)
        distance = ((v - old) ** 2).mean().item()
        assert output.loss_B[b].item() == pytest.approx(max(-share * ratio, -share * cut) + old_kl * distance, rel=1e-9)
        acts = -share * cut > -share * ratio
        clipped += acts
        expected = old_kl * 2 * (v - old) / 24
        if not acts:
            expected = expected + share * ratio * slope(m, sigma) * 2 * (v - target) / 24
        torch.testing.assert_close(gradient[b], expected, rtol=1e-8, atol=1e-12)
        assert output.metrics["likelihood_clipped"][b] == acts
        assert output.metrics["matching_loss"][b].item() == pytest.approx(m)
    assert (clipped > 0) == (width < 1.0)
    assert output.metrics["clipped_advantage"].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]


def test_a_group_without_advantage_moves_nothing_on_policy() -> None:
    inputs = dataclasses.replace(forward_inputs(change=0.0), advantage_B=torch.zeros(8, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(bind_objective("awm")(inputs).loss_B.sum(), inputs.velocity_BCHW)
    assert not gradient.any()


def test_a_perfect_prediction_has_a_finite_gradient() -> None:
    inputs = forward_inputs(dtype=torch.float32)
    exact = inputs.noise_BCHW - inputs.x0_BCHW
    perfect = dataclasses.replace(inputs, velocity_BCHW=exact.clone().requires_grad_(), old_velocity_BCHW=exact)
    for weighting in WEIGHTED:
        loss = bind_objective("awm", {"weighting": weighting})(perfect).loss_B
        (gradient,) = torch.autograd.grad(loss.sum(), perfect.velocity_BCHW)
        assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"weighting": "elbo"}, "weighting"),
        ({"power": 0.0}, "power"),
        ({"power": 1.5}, "power"),
        ({"clip_low": 2.0}, "clip_low"),
        ({"advantage_max": 0.0}, "advantage_max"),
        ({"old_kl": -0.1}, "old_kl"),
        ({"old_kl": float("nan")}, "old_kl"),
    ],
)
def test_impossible_parameters_are_refused_with_their_key(params, key) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_objective("awm", params)
    assert caught.value.key == f"uae.u4g.objective.params.{key}"
    bind_objective("awm", {"old_kl": 0.0})
