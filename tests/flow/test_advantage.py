# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from verl_uae.flow.advantage import AdvantageStats, group_advantage


def _rewards(groups: int, members: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards in [0, 1], (groups * members,), and a shuffled group index."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(groups * members, generator=generator)
    order = torch.randperm(groups * members, generator=generator)
    return reward, torch.arange(groups).repeat_interleave(members)[order]


@pytest.mark.parametrize("members", [2, 3, 8])
@pytest.mark.parametrize("std", ["group", "none"])
def test_bit_equal_to_verl(members: int, std) -> None:
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    reward, group = _rewards(16, members)
    expected, _ = core_algos.compute_grpo_outcome_advantage(
        token_level_rewards=reward.clone()[:, None],
        response_mask=torch.ones(len(reward), 1),
        index=np.array([f"uid-{g}" for g in group.tolist()], dtype=object),
        norm_adv_by_std_in_grpo=std == "group",
    )
    found, stats = group_advantage(reward, torch.ones_like(reward, dtype=torch.bool), group, std=std)
    assert torch.equal(found, expected[:, 0])
    assert stats == AdvantageStats(16, 0, 0, 0, 0)


def test_global_std_against_numpy() -> None:
    reward, group = _rewards(6, 4)
    found, _ = group_advantage(reward, torch.ones_like(reward, dtype=torch.bool), group, std="global")
    x, g = reward.double().numpy(), group.numpy()
    mean = np.array([x[g == name].mean() for name in g])
    assert np.allclose(found.numpy(), (x - mean) / (x.std(ddof=1) + 1e-6), atol=1e-6)


@pytest.mark.parametrize("std", ["group", "none"])
def test_invalid_rewards_poison_nothing(std) -> None:
    reward, group = _rewards(10, 4)
    valid = torch.ones_like(reward, dtype=torch.bool)
    clean, _ = group_advantage(reward, valid, group, std=std)
    hurt = [int(i) for i in (group < 3).nonzero().flatten()[:5]]
    for index, value in zip(hurt, [math.nan, math.inf, -math.inf, 1e30, 0.0], strict=True):
        reward[index], valid[index] = value, False
    found, stats = group_advantage(reward, valid, group, std=std)
    touched = torch.isin(group, group[hurt])
    assert torch.equal(found[~touched], clean[~touched])
    assert torch.isfinite(found).all() and (found[hurt] == 0.0).all() and stats.invalid == 5
    for name in group[hurt].unique().tolist():
        rest = (group == name) & valid
        if rest.sum() >= 2:
            x = reward[rest].double()
            divisor = x.std() + 1e-6 if std == "group" else 1.0
            assert torch.allclose(found[rest].double(), (x - x.mean()) / divisor, atol=1e-5)


def test_groups_without_a_pair_are_dropped_and_counted() -> None:
    nan = math.nan
    reward = torch.tensor([0.9, nan, nan, 0.5, nan, 0.1, 0.3])
    group = ["a", "b", "b", "c", "c", "d", "d"]
    found, stats = group_advantage(reward, ~reward.isnan(), group)
    assert torch.equal(found[:5], torch.zeros(5)) and found[5] < 0.0 < found[6]
    assert stats == AdvantageStats(groups=4, dropped_groups=3, dropped_samples=2, zero_std_groups=0, invalid=3)
    assert stats.as_metrics()["advantage/dropped_groups"] == 3.0


@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_rounding_noise_is_no_signal(std) -> None:
    """verl turns the first group into -0.19, 0.45, -0.19."""
    reward = torch.tensor([0.5, 0.500001, 0.5, 0.2, 0.4, 0.6])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    found, stats = group_advantage(reward, torch.ones(6, dtype=torch.bool), group, std=std)
    assert torch.equal(found[:3], torch.zeros(3)) and found[3] < 0.0 < found[5]
    assert stats.zero_std_groups == 1 and stats.as_metrics()["advantage/zero_std_frac"] == 0.5
    unfloored, _ = group_advantage(reward, torch.ones(6, dtype=torch.bool), group, std=std, min_std=0.0)
    assert unfloored[1] > 0.0


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6])
@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_a_tied_group_is_zero_whatever_its_mean_rounds_to(value: float, std) -> None:
    for members in range(2, 12):
        reward = torch.full((members,), value)
        found, stats = group_advantage(
            reward, torch.ones(members, dtype=torch.bool), [0] * members, std=std, min_std=0.0
        )
        assert torch.equal(found, torch.zeros(members)) and stats.zero_std_groups == 1


def test_property_over_random_cases() -> None:
    """2,000 drawn batches: finite, zero where it must be, centred in every kept group."""
    generator = torch.Generator().manual_seed(11)
    for _ in range(2000):
        count = int(torch.randint(1, 12, (1,), generator=generator))
        reward = torch.rand(count, generator=generator)
        group = torch.randint(0, 4, (count,), generator=generator)
        valid = torch.rand(count, generator=generator) < 0.7
        reward[~valid] = math.nan
        found, stats = group_advantage(reward, valid, group)
        assert torch.isfinite(found).all() and (found[~valid] == 0.0).all()
        sums = torch.zeros(4).index_add(0, group, found)
        assert sums.abs().max() < 1e-4
        assert stats.invalid == int((~valid).sum()) and stats.groups == len(group.unique())


def test_dtype_empty_and_gradient() -> None:
    reward = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    found, _ = group_advantage(reward, torch.ones(2, dtype=torch.bool), [7, 7])
    assert found.dtype == torch.float64 and not found.requires_grad
    found, stats = group_advantage(torch.zeros(0), torch.zeros(0, dtype=torch.bool), [])
    assert found.shape == (0,) and stats == AdvantageStats(0, 0, 0, 0, 0)
    assert stats.as_metrics()["advantage/zero_std_frac"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_N": torch.zeros(2, 1)}, "shape"),
        ({"reward_N": torch.zeros(2, dtype=torch.long)}, "float"),
        ({"valid_N": torch.ones(2)}, "valid_N"),
        ({"group_N": [0]}, "1 group names"),
        ({"std": "batch"}, "std must be"),
        ({"min_std": math.nan}, "min_std"),
        ({"reward_N": torch.tensor([math.nan, 0.0])}, r"rewards \[0\] are marked valid"),
    ],
)
def test_misuse_is_refused(change: dict, message: str) -> None:
    arguments = {"reward_N": torch.zeros(2), "valid_N": torch.ones(2, dtype=torch.bool), "group_N": [0, 0], **change}
    with pytest.raises(ValueError, match=message):
        group_advantage(**arguments)
