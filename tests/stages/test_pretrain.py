# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e/test_pretrain.py."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls

from tests.data.shard_world import write_shards
from tests.stages.test_standalone import assert_same_signatures
from verl_uae.data.rows import choose_rows
from verl_uae.errors import ConfigError, DataError
from verl_uae.scenes.dataset import write_dataset
from verl_uae.stages.common.pairs import PairTrainer
from verl_uae.stages.pretrain.trainer import PretrainTrainer


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
    trainer.config = compose(*tiny_overrides, f"uae.supervision.max_invalid_fraction={share}", name="uae_pretrain")
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


def loading(compose, overrides: list[str], folder: Path) -> PretrainTrainer:
    """A trainer with data and without workers."""
    trainer = object.__new__(PretrainTrainer)
    home = [f"uae_home={folder}", "hardware=cpu", "preset=scenes_pretrain", f"data.uae_quarantine_dir={folder}/bad"]
    trainer.config = compose(*home, *overrides, name="uae_pretrain")
    trainer._init_dataloader()
    return trainer


@pytest.mark.parametrize(("asked", "used"), [(0, 0), (2, 2), (8, 3)])
def test_shards_are_read_by_as_many_processes_as_there_are_shards_for(
    compose, tmp_path: Path, asked: int, used: int
) -> None:
    write_dataset(tmp_path / "data", train=2, val=2, seed=0)
    shards = write_shards(tmp_path / "shards", [4, 4, 4])
    overrides = [f"data.train_files='{shards}'", "data.train_batch_size=2", f"data.dataloader_num_workers={asked}"]
    trainer = loading(compose, overrides, tmp_path)
    assert trainer.train_dataloader.num_workers == used
    first = [pair.caption for _ in range(3) for pair in trainer.next_pairs()]
    file = io.BytesIO()
    torch.save(trainer.train_dataloader.state_dict(), file)
    rest = [pair.caption for _ in range(3) for pair in trainer.next_pairs()]
    file.seek(0)
    resumed = loading(compose, overrides, tmp_path)
    resumed.train_dataloader.load_state_dict(torch.load(file, weights_only=True))
    assert [pair.caption for _ in range(3) for pair in resumed.next_pairs()] == rest != first


def test_a_run_is_as_long_as_asked_for_and_a_batch_that_cannot_be_filled_is_named(compose, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=8, val=2, seed=0)
    trainer = loading(compose, ["data.train_batch_size=4", "trainer.total_training_steps=5"], tmp_path)
    assert (trainer.total_training_steps, trainer.steps_per_epoch, trainer.config.trainer.total_epochs) == (5, 2, 3)
    with pytest.raises(ConfigError, match=r"data\.train_batch_size: 64 is more than any bucket .* the 8 usable pairs"):
        loading(compose, ["data.train_batch_size=64"], tmp_path)


def test_verls_keys_of_order_and_number_are_kept(compose, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=16, val=2, seed=0)

    def rows(*overrides: str) -> list[int]:
        trainer = loading(compose, ["data.train_batch_size=4", *overrides], tmp_path)
        return [pair.row for _ in range(trainer.steps_per_epoch) for pair in trainer.next_pairs()]

    assert rows("data.shuffle=false") == list(range(16))
    assert rows("data.shuffle=false", "data.train_max_samples=8") == list(range(8))
    shuffled = rows("data.shuffle=true")
    assert sorted(shuffled) == list(range(16)) != shuffled
    drawn = rows("data.shuffle=true", "data.train_max_samples=8")
    assert len(set(drawn)) == 8 and set(drawn) == set(choose_rows(16, 8, shuffle=True, seed=42) or ())
