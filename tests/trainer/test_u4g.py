# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e/test_u4g.py."""

from __future__ import annotations

import pytest
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls

from tests.trainer.test_standalone import assert_same_signatures
from verl_uae.errors import ConfigError
from verl_uae.trainer.u4g import U4GTrainer


def test_is_the_registered_trainer() -> None:
    assert get_trainer_cls("uae_u4g") is U4GTrainer and issubclass(U4GTrainer, PPOTrainer)


def test_overrides_keep_verls_signatures() -> None:
    assert_same_signatures(U4GTrainer)


def test_an_impossible_setting_stops_the_trainer_too(compose, tiny_overrides) -> None:
    """The Hydra callback is not there when a trainer is made from Python."""
    with pytest.raises(ConfigError, match=r"uae\.policy\.samples_per_caption"):
        U4GTrainer(compose(*tiny_overrides, "uae.policy.samples_per_caption=1", name="uae_u4g"))
