# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from verl_uae.errors import ConfigError
from verl_uae.stages.common.supervised import cover_steps


@pytest.mark.parametrize(("steps", "per_epoch", "epochs"), [(10, 10, 1), (11, 10, 2), (600, 62, 10), (1, 5, 1)])
def test_epochs_never_end_a_run_before_its_steps(steps: int, per_epoch: int, epochs: int) -> None:
    """verl's loop: ``while (step - 1) // per_epoch < total_epochs and step <= steps``."""
    config = OmegaConf.create({"trainer": {"total_epochs": 1}, "data": {"train_batch_size": 4}})
    OmegaConf.set_struct(config, True)
    cover_steps(config, steps, per_epoch, rows=40)
    assert config.trainer.total_epochs == epochs
    assert (steps - 1) // per_epoch < epochs


def test_a_batch_that_cannot_be_filled_is_named() -> None:
    config = OmegaConf.create({"trainer": {"total_epochs": 1}, "data": {"train_batch_size": 64}})
    with pytest.raises(ConfigError, match=r"data\.train_batch_size: 64 is more than the 32 usable rows"):
        cover_steps(config, 0, 0, rows=32)
