# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces that need no cluster; the trainer as a whole is run by tests/e2e/test_pretrain.py."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls

from tests.data.shard_world import write_shards
from tests.stages.test_standalone import assert_same_signatures
from verl_uae.data.rows import choose_rows
from verl_uae.errors import ConfigError, DataError
from verl_uae.scenes.dataset import write_dataset
from verl_uae.stages.common.pairs import PairFeed, PairTrainer
from verl_uae.stages.common.supervised import GoodStep
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
    assert trainer.train_dataloader.loader.num_workers == used
    first = [pair.caption for _ in range(3) for pair in next(trainer.train_dataloader)]
    file = io.BytesIO()
    torch.save(trainer.train_dataloader.state_dict(), file)
    rest = [pair.caption for _ in range(3) for pair in next(trainer.train_dataloader)]
    file.seek(0)
    resumed = loading(compose, overrides, tmp_path)
    resumed.train_dataloader.load_state_dict(torch.load(file, weights_only=True))
    assert [pair.caption for _ in range(3) for pair in next(resumed.train_dataloader)] == rest != first


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
        return [pair.row for _ in range(trainer.steps_per_epoch) for pair in next(trainer.train_dataloader)]

    assert rows("data.shuffle=false") == list(range(16))
    assert rows("data.shuffle=false", "data.train_max_samples=8") == list(range(8))
    shuffled = rows("data.shuffle=true")
    assert sorted(shuffled) == list(range(16)) != shuffled
    drawn = rows("data.shuffle=true", "data.train_max_samples=8")
    assert len(set(drawn)) == 8 and set(drawn) == set(choose_rows(16, 8, shuffle=True, seed=42) or ())


class Ranks:
    """What the trainer asks of its workers, in order."""

    ranks = 1

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, Any]] = []

    def call(self, method: str, pairs: Any, size: Any, step: int) -> list[Any]:
        self.asked.append((method, step, None if pairs is None else tuple(pair.row for pair in pairs)))
        return [({"loss": [0.5]}, [])]


def stepping(compose, folder: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> PretrainTrainer:
    """A trainer whose workers note what they are asked."""
    monkeypatch.setattr("verl_uae.stages.common.pairs.ray.put", lambda value: value)
    trainer = loading(compose, overrides, folder)
    trainer.learner, trainer.global_steps = Ranks(), 0
    trainer.step_keys = lambda names: names
    trainer.supervisor = SimpleNamespace(boundary=lambda name: None, progress=lambda name: None)
    trainer._good = GoodStep(trainer.global_steps, None, {})
    return trainer


def steps(trainer: PretrainTrainer, count: int) -> None:
    for _ in range(count):
        trainer.global_steps += 1
        trainer.step({}, {})


def learnt(trainer: PretrainTrainer) -> list[tuple[int, Any]]:
    """Steps with the rows that each learnt from."""
    sent = {step: rows for _, step, rows in trainer.learner.asked if rows is not None}
    return [(step, sent[step]) for method, step, _ in trainer.learner.asked if method == "learn"]


@pytest.mark.parametrize("kind", ["rows", "shards"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_sent_ahead_is_neither_lost_nor_learnt_twice(
    compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int
) -> None:
    """Across the end of an epoch, and across a resume after every step."""
    write_dataset(tmp_path / "data", train=6, val=2, seed=0)
    overrides = ["data.train_batch_size=2", "trainer.total_training_steps=7", f"data.dataloader_num_workers={workers}"]
    if kind == "shards":
        overrides.append(f"data.train_files='{write_shards(tmp_path / 'shards', [3, 3])}'")
    plain = stepping(compose, tmp_path, overrides, monkeypatch)
    steps(plain, 7)
    expected = learnt(plain)
    assert [step for step, _ in expected] == list(range(1, 8))
    ahead = [*overrides, "uae.pretrain.prefetch=2"]
    for stop in (1, 3, 6):
        first = stepping(compose, tmp_path, ahead, monkeypatch)
        steps(first, stop)
        file = io.BytesIO()
        torch.save(first._good.loader, file)
        file.seek(0)
        assert torch.load(file, weights_only=True) == first.train_dataloader.state_dict()
        second = stepping(compose, tmp_path, ahead, monkeypatch)
        file.seek(0)
        second.train_dataloader.load_state_dict(torch.load(file, weights_only=True))
        second.global_steps = stop
        steps(second, 7 - stop)
        assert learnt(first) + learnt(second) == expected, stop


def test_workers_have_the_next_batches_before_they_learn_and_none_behind_the_last(
    compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "data", train=6, val=2, seed=0)
    overrides = ["data.train_batch_size=2", "trainer.total_training_steps=4", "uae.pretrain.prefetch=2"]
    trainer = stepping(compose, tmp_path, overrides, monkeypatch)
    steps(trainer, 4)
    asked = [(method, step) for method, step, _ in trainer.learner.asked]
    begun = [("prefetch", step) for step in (1, 2, 3)]
    learn = [("learn", step) for step in (1, 2, 3, 4)]
    assert asked == [*begun, learn[0], ("prefetch", 4), *learn[1:]]
    assert all(rows is None for method, _, rows in trainer.learner.asked if method == "learn")


def test_data_that_cannot_be_read_end_the_run_at_their_step() -> None:
    """And not at the step before, which was only to read ahead."""

    class Loader(list):
        def __iter__(self) -> Any:
            yield from [["a"], ["b"]]
            raise DataError("shard", None, "too many bad samples")

        def state_dict(self) -> dict:
            return {}

    feed = PairFeed(Loader())
    assert feed.read_ahead(3) == [["a"], ["b"]] and feed.read_ahead(4) == []
    assert [next(feed), next(feed)] == [["a"], ["b"]]
    with pytest.raises(DataError, match="too many bad samples"):
        next(feed)


def test_prefetched_batches_need_the_frozen_models_on_the_device(compose, tiny_overrides) -> None:
    overrides = [*tiny_overrides, "uae.train.micro_batch_size=1", "uae.pretrain.prefetch=1", "uae.decoder.offload=true"]
    with pytest.raises(ConfigError, match=r"uae\.pretrain\.prefetch: 1 needs VAE .* uae\.decoder\.offload to false"):
        PretrainTrainer(compose(*overrides, name="uae_pretrain"))
