# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e/test_unified.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls

from tests.stages.test_standalone import assert_same_signatures
from verl_uae.errors import ConfigError
from verl_uae.stages.unified.trainer import Alternation, UnifiedTrainer


def test_is_the_registered_trainer() -> None:
    assert get_trainer_cls("uae_unified") is UnifiedTrainer and issubclass(UnifiedTrainer, PPOTrainer)


def test_overrides_keep_verls_signatures() -> None:
    assert_same_signatures(UnifiedTrainer)


def test_an_impossible_setting_stops_the_trainer_too(compose, tiny_overrides) -> None:
    """The Hydra callback is not there when a trainer is made from Python."""
    with pytest.raises(ConfigError, match=r"uae\.u4g\.samples_per_caption"):
        UnifiedTrainer(compose(*tiny_overrides, "uae.u4g.samples_per_caption=1", name="uae_unified"))


def test_resumes_both_models_from_the_folder_it_is_told_to(
    compose, tiny_overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which need not be one of this run: only there are the decoder's weights."""
    folder = tmp_path / "other_run" / "global_step_3"
    loaded: list[Any] = []
    trainer = object.__new__(UnifiedTrainer)
    trainer.config = compose(*tiny_overrides, name="uae_unified")
    trainer.config.trainer.update(
        {"resume_mode": "resume_path", "resume_from_path": str(folder), "default_local_dir": str(tmp_path / "mine")}
    )
    trainer.schedule = Alternation(1, 1)
    trainer.use_critic, trainer.trainer_mode = False, "sync"
    trainer.learner = SimpleNamespace(load=loaded.append, state_ref=lambda: "weights")
    trainer.decoders = SimpleNamespace(load_decoder_state=loaded.append)  # type: ignore[assignment]
    trainer.actor_rollout_wg = SimpleNamespace(load_checkpoint=lambda local_path, **_: loaded.append(local_path))
    trainer._load_checkpoint()
    assert trainer.global_steps == 3 and f"{folder} is not marked complete" in caplog.text
    assert loaded == [f"{folder}/actor", f"{folder}/decoder_policy", "weights"]
