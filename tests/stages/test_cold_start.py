# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer as a whole is run by tests/e2e/test_pretrain.py."""

from __future__ import annotations

import pytest
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls

from tests.stages.test_standalone import assert_same_signatures
from verl_uae.errors import ConfigError
from verl_uae.stages.cold_start.trainer import ColdStartTrainer


def test_is_the_registered_trainer() -> None:
    assert get_trainer_cls("uae_cold_start") is ColdStartTrainer and issubclass(ColdStartTrainer, PPOTrainer)
    assert_same_signatures(ColdStartTrainer)


def test_an_impossible_setting_stops_the_trainer_too(compose, tiny_overrides) -> None:
    with pytest.raises(ConfigError, match=r"uae\.cold_start\.num_steps"):
        ColdStartTrainer(compose(*tiny_overrides, "uae.cold_start.num_steps=0", name="uae_cold_start"))
