# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What all families share, on one whose transformer is a formula."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import Tokens
from verl_uae.seeding import normal


class Formula(DecoderFamily):
    """v = x * (mean of the row's states) + sigma, without a mask: positions that do not exist would count."""

    name = "formula"
    mixes_lengths = False
    calls_made: list[int]

    def input_layer(self, transformer: Any) -> Any:
        return transformer.linear

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        parts.calls.append(len(x_BCHW))
        mean_B = condition.states.flatten(1).mean(1) * parts.transformer.linear.weight.sum()
        return x_BCHW * mean_B[:, None, None, None] + sigma_B[:, None, None, None]


def family(**scheduler: Any) -> Formula:
    made = FlowMatchEulerDiscreteScheduler(**scheduler)
    configs = {"transformer": SimpleNamespace(in_channels=2), "vae": SimpleNamespace()}
    return Formula(configs, made.config)


@pytest.fixture
def parts() -> Any:
    transformer = nn.Module()
    transformer.linear = nn.Linear(1, 1)
    nn.init.ones_(transformer.linear.weight)
    return SimpleNamespace(transformer=transformer, calls=[])


def rows(*lengths: int) -> list[Condition]:
    return [Condition(normal((1, length, 3), "row", number), (length,)) for number, length in enumerate(lengths)]


X, SIGMA = normal((4, 2, 2, 2), "x"), torch.tensor([0.1, 0.4, 0.7, 1.0])


def test_a_batch_of_conditions_gives_its_rows_back() -> None:
    parts = rows(3, 5, 2)
    batch = Condition.stack(parts)
    assert batch.states.shape == (3, 5, 3) and batch.lengths == (3, 5, 2) and len(batch) == 3
    assert batch.mask_BL.sum(1).tolist() == [3, 5, 2] and not bool(batch.states[~batch.mask_BL].any())
    for number, part in enumerate(parts):
        for found in (batch[number : number + 1], batch[[number]]):
            assert torch.equal(found.states, part.states) and found.lengths == part.lengths
    turned = batch[[2, 0]]
    assert turned.states.shape == (2, 3, 3) and turned.lengths == (2, 3)
    wide = parts[0].expand(4)
    assert wide.lengths == (3,) * 4 and torch.equal(wide.states[3], parts[0].states[0])


def test_rows_that_do_not_mix_run_by_their_length_and_come_back_in_order(parts: Any) -> None:
    made, alone = family(), rows(3, 5, 2, 3)
    found = made.field(parts, Condition.stack(alone))(X, SIGMA)
    assert parts.calls == [1, 2, 1] and made.calls(Condition.stack(alone)) == 3
    for row, condition in enumerate(alone):
        assert torch.equal(found[row], made.field(parts, condition)(X[row : row + 1], SIGMA[row : row + 1])[0])
    assert not torch.allclose(found[2], X[2] * Condition.stack(alone).states[2].mean() + SIGMA[2])


def test_calls_beyond_the_groups_change_nothing_but_their_number(parts: Any) -> None:
    made, condition = family(), Condition.stack(rows(3, 5, 3, 3))
    weight, grads = parts.transformer.linear.weight, []
    for calls in (1, 5):
        velocity = made.field(parts, condition, calls=calls)(X, SIGMA)
        grads.append((velocity.detach(), *torch.autograd.grad(velocity.square().sum(), [weight])))
    assert len(parts.calls) == 2 + 5
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_both_branches_of_guidance_run_by_length(parts: Any) -> None:
    made, condition, (negative,) = family(), Condition.stack(rows(3, 3, 3, 3)), rows(2)
    found = made.field(parts, condition, negative, 4.0)(X, SIGMA)
    assert parts.calls == [4, 4] and made.calls(condition, negative) == 2
    v_c, v_u = (made.field(parts, each)(X, SIGMA) for each in (condition, negative.expand(4)))
    torch.testing.assert_close(found, v_u + 4.0 * (v_c - v_u))
    assert torch.equal(made.guide(v_c, v_u, 0.0), v_u)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_at_several_places_are_each_place_alone(parts: Any, guidance: float) -> None:
    made, condition, (negative,) = family(), Condition.stack(rows(3, 5)), rows(2)
    field = made.field(parts, condition, negative, guidance)
    together = field(X, SIGMA)
    assert len(parts.calls) == made.calls(condition, *([negative] if guidance > 1 else [])), "as often as at one place"
    for place in (slice(0, 2), slice(2, 4)):
        assert torch.equal(together[place], field(X[place], SIGMA[place]))
    assert not torch.equal(together[:2], field(X[:2].flip(0), SIGMA[:2].flip(0)))
    with pytest.raises(ValueError, match="latents of 3 rows for a condition of 2: must be a multiple"):
        field(X[:3], SIGMA[:3])


def test_kept_positions_move_to_the_front() -> None:
    keep = torch.tensor([[False, True, True, False], [False, True, False, False]])
    tokens = Tokens(keep.long(), keep, keep, torch.zeros(2, dtype=torch.bool))
    states = normal((2, 4, 2, 3), "states")
    condition = family().condition(states, tokens)
    assert condition.lengths == (2, 1) and condition.states.shape == (2, 2, 6)
    assert torch.equal(condition.states[0], states[0, 1:3].flatten(1)) and not bool(condition.states[1, 1].any())


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.02])
def test_noise_levels_are_those_of_the_scheduler(kind: str, terminal: float | None) -> None:
    """Given the even grid that every stock pipeline hands it, and the mu of its size."""
    settings = {"use_dynamic_shifting": True, "time_shift_type": kind, "shift_terminal": terminal}
    stock = FlowMatchEulerDiscreteScheduler(**settings)
    made = family(**settings)
    tokens = (512 // 16) * (768 // 16)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    assert made.mu(9, tokens) == pytest.approx(mu) and made.image_tokens(512, 768) == tokens
    stock.set_timesteps(sigmas=torch.linspace(1, 1 / 9, 9).tolist(), mu=mu)
    torch.testing.assert_close(made.sigmas(9, 512, 768), stock.sigmas, atol=1e-6, rtol=0)


def test_one_step_goes_from_noise_to_the_picture() -> None:
    assert family(shift_terminal=0.02).sigmas(1, 512, 512).tolist() == [1.0, 0.0]
