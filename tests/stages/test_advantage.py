# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

from verl_uae.stages.g4u.advantage import SETTINGS_KEY, uae_grpo

N, T = 24, 7


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Rewards at the last token, masks of different lengths, groups of four."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (N,), generator=generator)
    mask = (torch.arange(T)[None] < lengths[:, None]).long()
    rewards = torch.zeros(N, T)
    rewards[torch.arange(N), lengths - 1] = torch.rand(N, generator=generator)
    return rewards, mask, np.array([f"u{i // 4}" for i in range(N)], dtype=object)


def test_is_registered() -> None:
    assert get_adv_estimator_fn("uae_grpo") is uae_grpo


def test_equals_verls_grpo_on_clean_data() -> None:
    rewards, mask, index = batch()
    expected, returns = compute_grpo_outcome_advantage(token_level_rewards=rewards, response_mask=mask, index=index)
    found, ours = uae_grpo(token_level_rewards=rewards, response_mask=mask, index=index)
    assert torch.equal(found, expected) and torch.equal(ours, returns) and found.abs().max() > 0.5


def test_masked_rows_have_no_part() -> None:
    rewards, mask, index = batch()
    poisoned = rewards.clone()
    mask[1], poisoned[1] = 0, 1e6
    mask[8:11] = 0
    found, _ = uae_grpo(token_level_rewards=poisoned, response_mask=mask, index=index)
    assert (found[1] == 0).all() and (found[8:12] == 0).all(), "the twelfth is alone in its group"
    kept = [0, 2, 3]
    alone, _ = compute_grpo_outcome_advantage(rewards[kept], mask[kept], index[kept])
    assert torch.allclose(found[kept], alone)
    clean, _ = uae_grpo(token_level_rewards=rewards, response_mask=batch()[1], index=index)
    assert torch.equal(found[12:], clean[12:])


def test_settings_of_the_run_arrive() -> None:
    rewards, mask, index = batch()

    def advantage(**settings: object) -> torch.Tensor:
        config = OmegaConf.create({SETTINGS_KEY: settings})
        return uae_grpo(token_level_rewards=rewards, response_mask=mask, index=index, config=config)[0]

    assert (advantage(min_std=10.0) == 0).all()
    plain = advantage(std="none")
    expected = compute_grpo_outcome_advantage(rewards, mask, index, norm_adv_by_std_in_grpo=False)[0]
    assert torch.equal(plain, expected)
    assert not torch.allclose(advantage(std="global"), advantage(std="group"))
    with pytest.raises(ValueError, match="std must be"):
        advantage(std="batch")
