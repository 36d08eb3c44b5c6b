# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e/test_pretrain.py."""

from __future__ import annotations

import pytest
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls

from tests.trainer.test_standalone import assert_same_signatures
from verl_uae.errors import ConfigError, DataError
from verl_uae.trainer.pretrain import PairTrainer, PretrainTrainer


def test_is_the_registered_trainer() -> None:
    assert get_trainer_cls("uae_pretrain") is PretrainTrainer and issubclass(PretrainTrainer, PPOTrainer)


def test_overrides_keep_verls_signatures() -> None:
    for trainer in (PairTrainer, PretrainTrainer):
        assert_same_signatures(trainer)


def test_an_impossible_setting_stops_the_trainer_too(compose, tiny_overrides) -> None:
    with pytest.raises(ConfigError, match=r"uae\.pretrain\.condition_dropout"):
        PretrainTrainer(compose(*tiny_overrides, "uae.pretrain.condition_dropout=1", name="uae_pretrain"))


def made(compose, tiny_overrides, share: float) -> PretrainTrainer:
    """A trainer without workers and data."""
    trainer = object.__new__(PretrainTrainer)
    trainer.config = compose(*tiny_overrides, f"uae.reward.max_invalid_fraction={share}", name="uae_pretrain")
    trainer.global_steps = 3
    return trainer


def test_pairs_that_cannot_be_used_are_counted_and_too_many_stop_the_run(compose, tiny_overrides) -> None:
    metrics: dict[str, float] = {}
    made(compose, tiny_overrides, 0.5)._check(["a.parquet, row 7: broken"], 8, metrics)
    assert metrics == {"pairs/invalid_frac": 0.125}
    with pytest.raises(DataError, match=r"2 of 8 pairs cannot be used.*first: x"):
        made(compose, tiny_overrides, 0.2)._check(["x", "y"], 8, metrics)
    with pytest.raises(DataError, match="8 of 8"):
        made(compose, tiny_overrides, 1.0)._check(["x"] * 8, 8, metrics)
