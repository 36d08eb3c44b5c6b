# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.flow.objective.cases import Transitions, rows
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import bind_objective

WIDE = {"clip_low": 0.9, "clip_high": 0.9}


def _log_ratio(inputs) -> torch.Tensor:
    return bind_objective("grpo_guard", WIDE)(inputs).metrics["ratio"].log()


def test_log_ratio_is_the_sample_s_own_mean_of_z_d() -> None:
    case = Transitions()
    velocity = case.nearby(0.1)
    found = _log_ratio(case(velocity))
    for sample in range(8):
        d = (case.mean(velocity) - case.old_mean)[sample]
        assert torch.allclose(found[sample], (case.noise[sample] * d).sum() / d.numel(), rtol=1e-9)


def test_log_ratio_is_the_published_one() -> None:
    """(log r + k) std, with the k of each sample; with the batch's k, a mistake in circulation, it would not be."""
    case = Transitions()
    inputs = case(case.nearby(0.5))
    k = bind_objective("grpo_guard", WIDE)(inputs).metrics["k"]
    log_ratio = inputs.log_prob_B - inputs.old_log_prob_B
    assert torch.allclose(_log_ratio(inputs), (log_ratio + k) * inputs.std, rtol=1e-8)
    assert not torch.allclose(_log_ratio(inputs), (log_ratio + k.mean()) * inputs.std, rtol=1e-4)


def test_log_ratio_ignores_the_rest_of_the_batch() -> None:
    """Fails where k or the scale is averaged over the batch."""
    case = Transitions()
    inputs = case(case.nearby(0.5))
    whole = _log_ratio(inputs)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    assert torch.equal(_log_ratio(rows(inputs, order)), whole[order])
    assert torch.equal(torch.cat([_log_ratio(rows(inputs, part)) for part in torch.arange(8).split(3)]), whole)
    other = inputs.mean_BCHW.clone()
    other[1:] += 3.0
    assert _log_ratio(dataclasses.replace(inputs, mean_BCHW=other))[0] == whole[0]


@pytest.mark.parametrize("sigma", [0.95, 0.75, 0.5, 0.25])
def test_the_gradient_is_the_same_at_every_step(sigma) -> None:
    """(1 + a^2 / 2) A z / D on the velocity, whatever the step; a = 0.7."""
    case = Transitions(sigma=sigma)
    velocity = case.old_velocity.clone().requires_grad_()
    loss = bind_objective("grpo_guard")(case(velocity)).loss_B
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    expected = (1.0 + 0.7**2 / 2.0) * case.advantage[:, None, None, None] * case.noise / 24
    assert torch.allclose(gradient, expected, rtol=1e-9)


def test_the_ratio_has_no_bias_where_the_plain_one_has() -> None:
    case = Transitions(batch=20000)
    inputs = case(case.nearby(0.5))
    guarded = _log_ratio(inputs)
    plain = (inputs.log_prob_B - inputs.old_log_prob_B) * inputs.std
    error = guarded.std() / len(guarded) ** 0.5
    assert guarded.mean().abs() < 4.0 * error and plain.mean() < -20.0 * error


def test_clip_acts_on_the_guarded_ratio() -> None:
    case = Transitions()
    inputs = case(case.nearby(0.1))
    output = bind_objective("grpo_guard", {"clip_low": 1e-3, "clip_high": 2e-3})(inputs)
    ratio, advantage = _log_ratio(inputs).exp(), inputs.advantage_B
    high, low = (ratio > 1.002) & (advantage > 0), (ratio < 0.999) & (advantage < 0)
    assert high.any() and low.any()
    assert torch.equal(output.metrics["clipped_high"].bool(), high)
    assert torch.equal(output.metrics["clipped_low"].bool(), low)
    assert torch.allclose(output.loss_B[high], -advantage[high] * 1.002 / inputs.step_size)


@pytest.mark.parametrize("kernel", ["cps", "dance"])
def test_other_kernels_are_refused_when_bound_and_when_run(kernel) -> None:
    with pytest.raises(ConfigError, match="flow_sde") as caught:
        bind_objective("grpo_guard", kernel=kernel)
    assert caught.value.key == "uae.u4g.objective.name"
    case = Transitions(kernel)
    with pytest.raises(ValueError, match=kernel):
        bind_objective("grpo_guard")(case(case.old_velocity))
