# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the stages without a captioner share; whole runs are in tests/e2e."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_uae.checkpoints.record import SavedState
from verl_uae.checkpoints.step import complete_steps, mark_complete
from verl_uae.errors import CheckpointError
from verl_uae.stages.common.standalone import NoAgentLoops, StandaloneTrainer


def assert_same_signatures(trainer: type) -> None:
    """An argument verl adds would otherwise be met first in the middle of a run."""
    for name, function in vars(trainer).items():
        theirs = getattr(PPOTrainer, name, None)
        if inspect.isfunction(function) and inspect.isfunction(theirs) and name != "__init__":
            assert list(inspect.signature(function).parameters) == list(inspect.signature(theirs).parameters), name


class Made(StandaloneTrainer):
    """A trainer whose models are a text file."""

    def __init__(self, root: Path, mode: str, path: str | None = None) -> None:
        self.config = OmegaConf.create(
            {
                "trainer": {"default_local_dir": str(root), "resume_mode": mode, "resume_from_path": path},
                "uae": {
                    "stage": "pretrain",
                    "checkpoint": {"digests": True},
                    "supervision": {"stall_timeout_s": 60.0, "host_memory": 1.0},
                },
            }
        )
        self.keep_configuration()
        self.training_prompts = list
        self.global_steps = 0
        self.train_dataloader = Places(SavedState({"next": 7}).state)
        self.loaded: list[str] = []

    def start_workers(self, pool: object) -> None:
        raise AssertionError("not asked for")

    def save_decoder(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights").write_text(f"step {self.global_steps}")

    def load_decoder(self, folder: Path) -> None:
        self.loaded.append((folder / "weights").read_text())


class Places(SavedState):
    """A data loader that remembers where it was put."""

    def load_state_dict(self, state: dict) -> None:
        object.__setattr__(self, "state", state)


def test_overrides_keep_verls_signatures() -> None:
    assert_same_signatures(StandaloneTrainer)
    assert isinstance(NoAgentLoops.create(anything=1), NoAgentLoops)


def saved(root: Path, steps: tuple[int, ...]) -> None:
    trainer = Made(root, "disable")
    for step in steps:
        trainer.global_steps = step
        trainer._save_checkpoint()


def test_resumes_at_the_newest_complete_step_with_its_place_in_the_data(tmp_path: Path) -> None:
    saved(tmp_path, (2, 4))
    broken = tmp_path / "global_step_6"
    broken.mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("6")
    trainer = Made(tmp_path, "auto")
    trainer.train_dataloader = Places({})
    trainer._load_checkpoint()
    assert trainer.global_steps == 4 and trainer.loaded == ["step 4"]
    assert trainer.train_dataloader.state == {"next": 7}


def test_resumes_where_it_is_told_to_or_not_at_all(tmp_path: Path) -> None:
    saved(tmp_path, (2, 4))
    chosen = Made(tmp_path, "resume_path", str(tmp_path / "global_step_2"))
    chosen._load_checkpoint()
    fresh = Made(tmp_path, "disable")
    fresh._load_checkpoint()
    assert (chosen.global_steps, chosen.loaded) == (2, ["step 2"]) and (fresh.global_steps, fresh.loaded) == (0, [])


def test_the_step_before_goes_after_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, (2,))
    trainer = Made(tmp_path, "disable")
    trainer.config.trainer.max_actor_ckpt_to_keep = 1
    seen: list[list[int]] = []
    monkeypatch.setattr(
        "verl_uae.stages.common.standalone.write_text", lambda path, text, **_: seen.append(complete_steps(path.parent))
    )
    trainer.global_steps = 4
    trainer._save_checkpoint()
    assert seen == [[2]] and complete_steps(tmp_path) == [4] and not (tmp_path / "global_step_2").exists()


def test_a_chosen_folder_that_is_not_complete_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, (2, 4))
    (tmp_path / "global_step_2" / "uae_complete.json").unlink()
    for step, warned in ((4, False), (2, True)):
        caplog.clear()
        Made(tmp_path, "resume_path", str(tmp_path / f"global_step_{step}"))._load_checkpoint()
        assert ("is not marked complete" in caplog.text) is warned


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_an_altered_step_is_not_resumed(tmp_path: Path, mode: str) -> None:
    saved(tmp_path, (2, 4))
    (tmp_path / "global_step_4" / "weights").write_text("step 5")
    trainer = Made(tmp_path, mode, str(tmp_path / "global_step_4"))
    with pytest.raises(CheckpointError, match=r"global_step_4/weights: altered, or of another run"):
        trainer._load_checkpoint()
    assert trainer.loaded == []
    trainer.config.uae.checkpoint.digests = False
    trainer._load_checkpoint()
    assert trainer.loaded == ["step 5"]


def test_a_step_without_its_place_in_the_data_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, (2,))
    (tmp_path / "global_step_2" / "data.pt").unlink()
    mark_complete(tmp_path / "global_step_2", 2)
    with pytest.raises(CheckpointError, match=r"data\.pt.*missing"):
        Made(tmp_path, "auto")._load_checkpoint()


def test_the_place_in_the_data_needs_no_pickle(tmp_path: Path) -> None:
    saved(tmp_path, (2,))
    assert torch.load(tmp_path / "global_step_2" / "data.pt", weights_only=True) == {"next": 7}


def test_nothing_was_rolled_out_where_captions_are_given(tmp_path: Path) -> None:
    """verl's own would ask the TransferQueue for prompts and answers that are not there."""
    Made(tmp_path, "disable")._log_rollout_data(None, {}, str(tmp_path / "rollouts"))  # type: ignore[arg-type]
    assert not (tmp_path / "rollouts").exists()
