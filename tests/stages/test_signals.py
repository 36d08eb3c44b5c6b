# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.samples import caption, lost, scored
from verl_uae.chain.records import Outcome
from verl_uae.checkpoints.names import SIGNALS_FILE
from verl_uae.errors import CheckpointError
from verl_uae.stages.common.outcomes import outcome_metrics
from verl_uae.stages.common.signals import RewardSignals, StageSignals

TERMS = (
    "[{name: pixel, weight: 0.5, normalize: running}, {name: ssim, weight: 2.0}, "
    "{name: repetition, weight: 0.1, normalize: running}, {name: psnr, held_out: true}]"
)


def outcome(pixel: float, ssim: float = 0.5, repetition: float = 0.1, psnr: float = 0.3) -> Outcome:
    value = 0.5 * pixel + 2.0 * ssim - 0.1 * repetition
    return scored(value, pixel=pixel, ssim=ssim, repetition=repetition, psnr=psnr)


@pytest.fixture
def config(compose, tiny_overrides):
    return compose(*tiny_overrides, f"uae.reward.terms={TERMS}", "uae.reward.tripwire_window=3")


def test_the_value_that_trains_has_normalised_terms(config) -> None:
    signals = StageSignals(config)
    first = [outcome(0.2, repetition=0.4), lost("x"), outcome(0.4, 0.6)]
    second = [outcome(0.9, 0.1, 0.3), outcome(0.1)]
    signals.recompose(first, ["g"] * len(first))
    found = signals.recompose(second, ["g"] * len(second))
    pixel, repetition = np.array([0.2, 0.4, 0.9, 0.1]), np.array([0.4, 0.1, 0.3, 0.1])
    for entry, before in zip(found, second, strict=True):
        terms = before.record.terms
        expected = 0.5 * (terms["pixel"] - pixel.mean()) / pixel.std() + 2.0 * terms["ssim"]
        expected -= 0.1 * (terms["repetition"] - repetition.mean()) / repetition.std()
        assert entry.record.value == pytest.approx(expected, rel=1e-9)
        assert entry.record.terms == terms and before.record.value != entry.record.value
    failed = signals.recompose(first, ["g"] * len(first))[1]
    assert failed == first[1], "a sample without reward stays without"


def test_a_comparison_by_the_values_that_train_leaves_the_statistics_alone(config) -> None:
    signals, other = StageSignals(config), StageSignals(config)
    first, second = [outcome(0.2), outcome(0.4, 0.6)], [outcome(0.9, 0.1, 0.3), outcome(0.1)]
    for each in (signals, other):
        each.recompose(first, ["g"] * 2)
    before = signals.state_dict()
    compared = signals.recompose(second, ["g"] * 2, remember=False)
    assert signals.state_dict() == before
    assert compared == other.recompose(second, ["g"] * 2) and other.state_dict() != before


def test_without_normalised_terms_the_scorers_sum_stands(compose, tiny_overrides) -> None:
    config = compose(*tiny_overrides, "uae.reward.tripwire_window=0")
    signals = StageSignals(config)
    outcomes = [outcome(0.2), outcome(0.4)]
    assert all(a is b for a, b in zip(signals.recompose(outcomes, ["g"] * len(outcomes)), outcomes, strict=True))
    assert signals.metrics(outcomes, {"reward/pixel/mean": 0.3}) == {}


def test_tripwire_sees_the_logged_means_and_the_plain_sum(config) -> None:
    signals = StageSignals(config)
    flags = []
    for step in range(4):
        drawn = [outcome(0.2, 0.2 + 0.1 * step, psnr=0.9 - 0.1 * step), outcome(0.3, 0.2 + 0.1 * step, psnr=0.5)]
        logged = outcome_metrics(signals.recompose(drawn, ["g"] * len(drawn)), [caption()] * 2, ["g", "g"], min_std=0.0)
        found = signals.metrics(drawn, logged)
        flags.append(found["reward/tripwire/psnr"])
        assert found["reward/plain_sum/mean"] == pytest.approx(sum(entry.record.value for entry in drawn) / 2)
    assert flags == [0.0, 0.0, 1.0, 1.0]
    assert set(found) == {"reward/tripwire/psnr", "reward/plain_sum/mean"}
    nothing = [lost("x")]
    assert signals.metrics(nothing, {}) == {"reward/tripwire/psnr": 1.0}, "a step without rewards changes nothing"


class Trainer(RewardSignals):
    def __init__(self, config) -> None:
        self.config = config


def test_checkpoint_of_the_signals(config, tmp_path: Path) -> None:
    first, second = Trainer(config), Trainer(config)
    for step in range(2):
        drawn = [outcome(0.2 + 0.1 * step, psnr=0.5 - 0.1 * step), outcome(0.6, psnr=0.5)]
        first.signals("g4u").recompose(drawn, ["g"] * len(drawn))
        first.signals("g4u").metrics(drawn, {"reward/psnr/mean": 0.5 - 0.1 * step})
    first.signals("u4g").recompose([outcome(0.9)], ["g"] * 1)
    first.save_signals(tmp_path)
    second.load_signals(tmp_path)
    batch = [outcome(0.5), outcome(0.7)]
    for stage in ("g4u", "u4g"):
        found, expected = (trainer.signals(stage).recompose(batch, ["g"] * len(batch)) for trainer in (second, first))
        assert found == expected and all(math.isfinite(entry.record.value) for entry in found)
    last = {"reward/psnr/mean": 0.1}
    assert second.signals("g4u").metrics(batch, last)["reward/tripwire/psnr"] == 1.0
    assert Trainer(config).signals("g4u").metrics(batch, last)["reward/tripwire/psnr"] == 0.0


def test_an_old_or_damaged_checkpoint(config, tmp_path: Path) -> None:
    trainer = Trainer(config)
    trainer.load_signals(tmp_path)
    assert trainer.signals("g4u").composition.moments["pixel"].count == 0
    for text in ("{", '{"g4u": {}}', '{"g4u": {"moments": {"pixel": {"x": 1}}, "tripwire": null}}'):
        (tmp_path / SIGNALS_FILE).write_text(text)
        with pytest.raises(CheckpointError, match="reward_signals"):
            Trainer(config).load_signals(tmp_path)
