# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.samples import caption, lost, scored
from verl_uae.chain.records import Outcome, Sample
from verl_uae.config.validate import validate
from verl_uae.data.images import encode_png
from verl_uae.errors import ConfigError
from verl_uae.reward.record import Status
from verl_uae.stages.common.signals import GroupRewards

JUDGE = """
def prefer(source, first, second, first_caption, second_caption, row):
    assert row == {"group": row["group"]} and source.size == first.size == second.size == (32, 32)
    one, other = (abs(source.getpixel((3, 3))[0] - image.getpixel((3, 3))[0]) for image in (first, second))
    return 0.5 if one == other else float(one < other)
"""


@pytest.fixture
def judge(tmp_path: Path) -> str:
    (tmp_path / "judge.py").write_text(JUDGE)
    return str(tmp_path / "judge.py")


def terms(judge: str, *more: str) -> str:
    listed = ["{name: pixel, weight: 1.0}", f"{{name: preference, weight: 0.5, params: {{path: {judge}}}}}", *more]
    return f"uae.reward.terms=[{', '.join(listed)}]"


def outcome(value: float, shade: float) -> Outcome:
    return scored(value, reconstruction=encode_png(torch.full((3, 32, 32), shade)))


def member(group: str, shade: int) -> Sample:
    # Another size than the decoder's: scaled as the painter scales it.
    return Sample(Image.new("RGB", (64, 48), (shade,) * 3), caption(), {"group": group})


def test_members_are_compared_with_each_other_and_pictures_go_no_further(compose, tiny_overrides, judge) -> None:
    rewards = GroupRewards(compose(*tiny_overrides, terms(judge)))
    assert rewards.active
    drawn = [
        outcome(0.3, 0.9),
        outcome(0.2, 0.5),
        lost("late", Status.TIMEOUT),
        outcome(0.6, 0.1),
        outcome(0.7, 0.3),
    ]
    sources = [member("a", 255)] * 3 + [member("b", 0)] * 2
    found = rewards.add(drawn, sources, ["a"] * 3 + ["b"] * 2)
    assert [entry.record.value for entry in found] == [
        pytest.approx(0.8),
        pytest.approx(0.2),
        None,
        pytest.approx(1.1),
        0.7,
    ]
    assert [entry.record.terms.get("preference") for entry in found] == [1.0, 0.0, None, 1.0, 0.0]
    assert found[2] == drawn[2] and all(entry.reconstruction is None for entry in found)


@pytest.mark.parametrize("pixels", [1, 32 * 32 * 4, 32 * 32 * 7, 2**22])
def test_pictures_are_decoded_for_a_few_groups_at_a_time(
    compose, tiny_overrides, judge, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    """As fp32 those of a step take 48 bytes per pixel: 24 GiB for 512 samples of 1024 x 1024."""
    monkeypatch.setattr("verl_uae.stages.common.signals.CALL_PIXELS", pixels)
    rewards = GroupRewards(compose(*tiny_overrides, terms(judge)))
    sizes, scored = [], rewards.scorer.score
    monkeypatch.setattr(
        rewards.scorer, "score", lambda batch, records: sizes.append(len(batch)) or scored(batch, records)
    )
    names = "abcabcaadd"
    found = rewards.add(
        [outcome(0.5, 0.05 * place) for place in range(10)], [member(name, 255) for name in names], names
    )
    assert sizes == {1: [4, 2, 2, 2], 4096: [4, 4, 2], 7168: [6, 4], 2**22: [10]}[pixels]
    # The brighter, the better, within a group.
    values = [round(entry.record.terms["preference"], 3) for entry in found]
    assert values == [0.0, 0.0, 0.0, 0.333, 1.0, 1.0, 0.667, 1.0, 0.0, 1.0]


def test_a_reconstruction_that_did_not_come_costs_its_sample(compose, tiny_overrides, judge) -> None:
    rewards = GroupRewards(compose(*tiny_overrides, terms(judge)))
    drawn = [outcome(0.3, 0.9), scored(0.2), outcome(0.2, 0.5)]
    found = rewards.add(drawn, [member("a", 255)] * 3, "aaa")
    assert [entry.record.ok for entry in found] == [True, False, True]
    assert "not sent" in found[1].record.reason


def test_without_a_groupwise_term_there_is_nothing_to_do(compose, tiny_overrides) -> None:
    assert not GroupRewards(compose(*tiny_overrides)).active


def test_a_reward_of_groupwise_terms_alone_is_refused(compose, tiny_overrides, judge) -> None:
    only = f"uae.reward.terms=[{{name: preference, params: {{path: {judge}}}}}]"
    with pytest.raises(ConfigError, match="not groupwise"):
        validate(compose(*tiny_overrides, only))
    validate(compose(*tiny_overrides, terms(judge)))
