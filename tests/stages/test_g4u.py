# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls

from verl_uae.checkpoints.record import SavedState
from verl_uae.checkpoints.step import complete_steps, is_complete, mark_complete, step_folders
from verl_uae.errors import ConfigError
from verl_uae.stages.g4u.trainer import BatchRewards, G4UTrainer, last_token_score


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
    trainer.keep_configuration()
    trainer.training_prompts = list
    trainer.global_steps = 2
    seen: list[bool] = []
    monkeypatch.setattr(PPOTrainerSync, "_save_checkpoint", lambda self: seen.append(is_complete(folder)))
    trainer._save_checkpoint()
    assert seen == [False] and is_complete(folder)


#: What a step folder of G4U gets, in order.
PARTS = ("captioner", "tracker", "signals")


def test_the_step_before_goes_after_the_new_one_is_complete(
    compose, tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl removes it as soon as the captioner is written; the run is dead at any line after that."""
    trainer = object.__new__(G4UTrainer)
    trainer.config = compose(
        *tiny_overrides, f"trainer.default_local_dir={tmp_path}", "trainer.max_actor_ckpt_to_keep=1", name="uae_g4u"
    )
    trainer.keep_configuration()
    trainer.training_prompts = list
    trainer.use_critic, trainer.trainer_mode = False, "sync"
    trainer.train_dataloader = SavedState({})
    seen: list[tuple[str, list[int]]] = []

    def save_captioner(local_path: str, remote_path: None, step: int, max_ckpt_to_keep: int | None) -> None:
        Path(local_path).mkdir(parents=True)
        seen.append(("captioner", complete_steps(tmp_path)))
        assert max_ckpt_to_keep is None, "verl would remove the step before now"

    trainer.actor_rollout_wg = SimpleNamespace(save_checkpoint=save_captioner)
    trainer.checkpoint_callback = SimpleNamespace(
        on_save=lambda **_: seen.append(("tracker", complete_steps(tmp_path)))
    )
    monkeypatch.setattr(trainer, "save_signals", lambda folder: seen.append(("signals", complete_steps(tmp_path))))
    for step in (1, 2, 3):
        trainer.global_steps = step
        trainer._save_checkpoint()
        assert [number for number, _ in step_folders(tmp_path)] == [step] == complete_steps(tmp_path)
    assert seen[3:] == [(part, [step]) for step in (1, 2) for part in PARTS]
