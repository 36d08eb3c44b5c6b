# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls

from verl_uae.errors import ConfigError
from verl_uae.trainer.checkpoint import is_complete, mark_complete
from verl_uae.trainer.g4u import BatchRewards, G4UTrainer, last_token_score


def test_is_the_registered_trainer() -> None:
    assert get_trainer_cls("uae_g4u") is G4UTrainer and issubclass(G4UTrainer, PPOTrainerSync)


def test_the_reward_lies_at_the_last_token_and_a_missing_one_nowhere() -> None:
    mask = torch.tensor([1, 1, 1])
    assert last_token_score(mask, 0.25).tolist() == [0.0, 0.0, 0.25]
    assert last_token_score(mask, 0.0).tolist() == last_token_score(mask, None).tolist() == [0.0, 0.0, 0.0]
    assert last_token_score(torch.tensor([1]), -1.0).tolist() == [-1.0]


def test_overrides_keep_verls_signatures() -> None:
    """An argument verl adds would otherwise be met first in the middle of a run."""
    for name, function in vars(G4UTrainer).items():
        theirs = getattr(PPOTrainerSync, name, None)
        if inspect.isfunction(function) and inspect.isfunction(theirs) and name != "__init__":
            ours = list(inspect.signature(function).parameters)
            assert ours == list(inspect.signature(theirs).parameters), name


def test_verl_takes_the_batch_path_for_rewards() -> None:
    """verl calls _compute_reward_colocate only where the reward loop has no worker handles."""
    assert BatchRewards().reward_loop_worker_handles is None
    module = inspect.getsource(inspect.getmodule(PPOTrainerSync.__mro__[1]))  # type: ignore[arg-type]
    assert "reward_loop_worker_handles is None" in module


def test_an_impossible_setting_stops_the_trainer_too(compose, tiny_overrides) -> None:
    """The Hydra callback is not there when a trainer is made from Python."""
    with pytest.raises(ConfigError, match="at least 2 captions"):
        G4UTrainer(compose(*tiny_overrides, "actor_rollout_ref.rollout.n=1"))


def test_a_step_folder_is_not_complete_while_it_is_written_again(
    compose, tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old marker would vouch for a mixture: files of equal size are there from the start."""
    folder = tmp_path / "global_step_2"
    folder.mkdir()
    (folder / "weights").write_text("old")
    mark_complete(folder, 2)
    trainer = object.__new__(G4UTrainer)
    trainer.config = compose(*tiny_overrides, f"trainer.default_local_dir={tmp_path}")
    trainer.global_steps = 2
    seen: list[bool] = []
    monkeypatch.setattr(PPOTrainerSync, "_save_checkpoint", lambda self: seen.append(is_complete(folder)))
    trainer._save_checkpoint()
    assert seen == [False] and is_complete(folder)
