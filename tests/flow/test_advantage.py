# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from verl_uae.flow.advantage import AdvantageStats, group_advantage, group_means


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


def test_global_std_is_that_of_valid_members_of_kept_groups() -> None:
    reward = torch.tensor([0.0, 1.0, 9.0, 0.25, 0.5, 7.0, -5.0])
    valid = torch.tensor([True, True, False, True, True, True, False])
    found, stats = group_advantage(reward, valid, [0, 0, 0, 1, 1, 2, 2], std="global")
    std = np.std([0.0, 1.0, 0.25, 0.5], ddof=1) + 1e-6
    expected = torch.tensor([-0.5, 0.5, 0.0, -0.125, 0.125, 0.0, 0.0]) / std
    assert torch.allclose(found, expected.float(), atol=1e-6) and stats.dropped_groups == 1


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


@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_rounding_noise_is_no_signal(std) -> None:
    """verl turns the first group into -0.19, 0.45, -0.19."""
    reward = torch.tensor([0.5, 0.500001, 0.5, 0.2, 0.4, 0.6])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    found, stats = group_advantage(reward, torch.ones(6, dtype=torch.bool), group, std=std)
    assert torch.equal(found[:3], torch.zeros(3)) and found[3] < 0.0 < found[5]
    assert stats.zero_std_groups == 1
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


def test_a_spread_on_the_floor_is_a_signal() -> None:
    reward, valid = torch.tensor([0.0, 1.0, 2.0]), torch.ones(3, dtype=torch.bool)
    on, _ = group_advantage(reward, valid, [0, 0, 0], min_std=1.0)
    below, stats = group_advantage(reward, valid, [0, 0, 0], min_std=1.001)
    assert on.tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    assert below.tolist() == [0.0] * 3 and stats.zero_std_groups == 1


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


def _batch(groups: int = 6, members: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards that fp32 adds up without rounding, a few of them invalid, groups interleaved."""
    generator = torch.Generator().manual_seed(4)
    reward = torch.randint(0, 64, (groups * members,), generator=generator) / 64.0
    return reward, torch.rand(len(reward), generator=generator) < 0.8, torch.arange(len(reward)) % groups


@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_order_of_the_batch_does_not_matter(std) -> None:
    reward, valid, group = _batch()
    expected, stats = group_advantage(reward, valid, group, std=std, clamp=1.0)
    for seed in range(20):
        order = torch.randperm(len(reward), generator=torch.Generator().manual_seed(seed))
        found, again = group_advantage(reward[order], valid[order], group[order], std=std, clamp=1.0)
        assert torch.allclose(found, expected[order], rtol=1e-6, atol=0.0) and again == stats


@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_a_constant_added_to_every_reward_changes_nothing(std) -> None:
    reward, valid, group = _batch(members=4)
    expected, stats = group_advantage(reward, valid, group, std=std)
    for shift in (-3.0, 0.5, 64.0):
        found, again = group_advantage(reward + shift, valid, group, std=std)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6) and again == stats


def test_where_sums_are_exact_order_and_shift_change_no_bit() -> None:
    """Groups of four with rewards k / 64: no sum, mean or difference rounds, so equality is that of the bits."""
    reward, _, group = _batch(members=4)
    valid = torch.ones_like(reward, dtype=torch.bool)
    expected, _ = group_advantage(reward, valid, group, std="none")
    for seed in range(20):
        order = torch.randperm(len(reward), generator=torch.Generator().manual_seed(seed))
        found, _ = group_advantage(reward[order] - 0.5 + seed, valid, group[order], std="none")
        assert torch.equal(found, expected[order])


@pytest.mark.parametrize("std", ["group", "global"])
def test_groups_spread_over_ranks_need_the_gathered_batch_and_get_it_exactly(std) -> None:
    """Three ranks hold parts of every group: gathered rewards give each rank its slice; its own part alone does not."""
    reward, valid, group = _batch()
    expected, _ = group_advantage(reward, valid, group, std=std)
    ranks = torch.arange(len(reward)).split(len(reward) // 3)
    gathered = [torch.cat([each[rank] for rank in ranks]) for each in (reward, valid, group)]
    found, _ = group_advantage(*gathered, std=std)
    for rank in ranks:
        assert torch.equal(found[rank], expected[rank])
        alone, _ = group_advantage(reward[rank], valid[rank], group[rank], std=std)
        assert not torch.allclose(alone, expected[rank], atol=1e-2)


def test_where_a_group_s_rows_lie_does_not_matter_but_a_micro_batch_is_no_batch() -> None:
    """Rows of a group side by side or spread out: the same bits. Half a batch has other means."""
    reward, valid, group = _batch()
    expected, _ = group_advantage(reward, valid, group)
    order = torch.argsort(group, stable=True)
    found, _ = group_advantage(reward[order], valid[order], group[order])
    assert torch.equal(found, expected[order])
    halves = [group_advantage(reward[part], valid[part], group[part])[0] for part in torch.arange(30).split(15)]
    assert not torch.allclose(torch.cat(halves), expected, atol=0.1)


def test_clamp_cuts_after_the_division_and_counts() -> None:
    reward = torch.tensor([0.0] * 15 + [1.0, 0.25, 0.75])
    group = [0] * 16 + [1] * 2
    valid = torch.ones(18, dtype=torch.bool)
    free, stats = group_advantage(reward, valid, group)
    assert free[15] > 3.7 and stats.clamped == 0
    cut, stats = group_advantage(reward, valid, group, clamp=0.5)
    assert torch.equal(cut, free.clamp(-0.5, 0.5)) and cut[15] == 0.5
    assert stats.clamped == 3
    wide, stats = group_advantage(reward, valid, group, clamp=5.0)
    assert torch.equal(wide, free) and stats.clamped == 0


def test_dtype_empty_and_gradient() -> None:
    reward = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    found, _ = group_advantage(reward, torch.ones(2, dtype=torch.bool), [7, 7])
    assert found.dtype == torch.float64 and not found.requires_grad
    found, stats = group_advantage(torch.zeros(0), torch.zeros(0, dtype=torch.bool), [])
    assert found.shape == (0,) and stats == AdvantageStats(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_N": torch.zeros(2, 1)}, "shape"),
        ({"reward_N": torch.zeros(2, dtype=torch.long)}, "float"),
        ({"valid_N": torch.ones(2)}, "valid_N"),
        ({"group_N": [0]}, "1 group names"),
        ({"std": "batch"}, "std must be"),
        ({"min_std": math.nan}, "min_std"),
        ({"clamp": 0.0}, "clamp must be above 0"),
        ({"clamp": math.nan}, "clamp must be above 0"),
        ({"reward_N": torch.tensor([math.nan, 0.0])}, r"rewards \[0\] are marked valid"),
    ],
)
def test_misuse_is_refused(change: dict, message: str) -> None:
    arguments = {"reward_N": torch.zeros(2), "valid_N": torch.ones(2, dtype=torch.bool), "group_N": [0, 0], **change}
    with pytest.raises(ValueError, match=message):
        group_advantage(**arguments)


def test_group_means_are_over_valid_members_alone_whatever_the_others_hold() -> None:
    value = torch.tensor([[1.0, 10.0], [math.nan, math.inf], [3.0, 20.0], [5.0, 30.0], [math.nan, 0.0]])
    valid = torch.tensor([True, False, True, True, False])
    found = group_means(value, valid, torch.tensor([7, 7, 7, 2, 4]))
    assert {group: mean.tolist() for group, mean in found.items()} == {7: [2.0, 15.0], 2: [5.0, 30.0], 4: [0.0, 0.0]}
