# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The loss and its gradient are compared with autograd through everything by tests/engines/test_cold_start.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.families import tiny
from verl_uae.families import family_of
from verl_uae.seeding import normal
from verl_uae.stages.cold_start.loss import answer_states, recompute


def test_answer_states_are_moved_to_the_front_and_cut() -> None:
    hidden_BTE = torch.arange(12.0).view(2, 3, 2)
    answer_BT = torch.tensor([[False, True, True], [False, False, True]])
    found = answer_states(hidden_BTE, answer_BT, 3)
    assert found.tolist() == [[[2, 3], [4, 5], [0, 0]], [[10, 11], [0, 0], [0, 0]]]
    assert answer_states(hidden_BTE, answer_BT, 1).tolist() == [[[2, 3]], [[10, 11]]]


@pytest.mark.parametrize("name", sorted(set(tiny.BUILDERS) - {"sd3"}))
def test_a_vae_computes_again_what_it_can_and_its_gradient_is_the_same(name: str, tmp_path: Path) -> None:
    made = tiny.build(name)
    made.save(tmp_path)
    family = family_of(tmp_path / "decoder")
    latent = normal((1, *family.latent_shape(64, 64)), "latent").requires_grad_()
    gradients, kept = [], []
    for wanted in (False, True):
        recompute(made.vae.requires_grad_(False), wanted)
        saved: list[Tensor] = []

        def pack(tensor: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = family.decode_with_gradient(made.vae, latent).square().mean()
        kept.append(len(saved))
        gradients += torch.autograd.grad(loss, [latent])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    assert kept[1] < kept[0] / 2 if made.vae._supports_gradient_checkpointing else kept[1] == kept[0]
