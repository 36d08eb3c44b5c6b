# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_uae.checkpoints.names import MARKER, TRACKER
from verl_uae.checkpoints.record import DecoderCheckpoints, verl_keeps_all
from verl_uae.checkpoints.step import (
    clear_exports,
    complete_steps,
    is_complete,
    mark_complete,
    prune_steps,
    repair_tracker,
    step_folders,
)
from verl_uae.files import publish_folder


def write_step(root: Path, step: int, *, complete: bool = True) -> Path:
    folder = root / f"global_step_{step}"
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "model.pt").write_bytes(b"w" * (100 + step))
    (folder / "data.pt").write_bytes(b"d")
    if complete:
        mark_complete(folder, step)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for step in (5, 10):
        write_step(tmp_path, step)
    (tmp_path / TRACKER).write_text("10")
    return tmp_path


def tracker(root: Path) -> str:
    return (root / TRACKER).read_text()


def test_a_sound_run_is_left_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert complete_steps(root) == [5, 10] and repair_tracker(root) == 10 and tracker(root) == "10"
    assert not caplog.records


@pytest.mark.parametrize("text", ["", "15", "5", "garbage", "1"])
def test_a_tracker_that_lies_is_corrected(root: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Empty: killed while verl rewrote it. 15: killed before the folder was there."""
    (root / TRACKER).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert repair_tracker(root) == 10
    assert tracker(root) == "10" and "newest complete step is 10" in caplog.text


def tracker_of(root: Path, kind: str) -> None:
    path = root / TRACKER
    path.unlink()
    if kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("somebody's")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(root / "gone")
    else:
        path.write_bytes(bytes(range(256)) * (4000 if kind == "long" else 1))


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "binary", "long"])
def test_a_tracker_that_is_no_text_is_replaced(root: Path, kind: str) -> None:
    tracker_of(root, kind)
    assert repair_tracker(root) == 10 and tracker(root) == "10"
    assert find_latest_ckpt_path(str(root)) == str(root / "global_step_10"), "verl reads it"
    assert [path.read_text() for path in root.glob("*/notes.txt")] == ["somebody's"] * (kind == "folder")
    tracker_of(root, kind)
    for step in (5, 10):
        (root / f"global_step_{step}" / MARKER).unlink()
    assert repair_tracker(root) is None and not os.path.lexists(root / TRACKER)


@pytest.mark.parametrize("name", ["global_step_²", "global_step_٣", "global_step_007", f"global_step_{'9' * 100}"])
def test_a_folder_that_verl_would_not_name_so_is_no_step(root: Path, name: str) -> None:
    shutil.copytree(root / "global_step_10", root / name)
    assert complete_steps(root) == [5, 10] and repair_tracker(root) == 10


def test_a_missing_tracker_is_written(root: Path) -> None:
    (root / TRACKER).unlink()
    assert repair_tracker(root) == 10 and tracker(root) == "10"


def test_a_half_written_newest_folder_is_not_trusted(root: Path) -> None:
    write_step(root, 15, complete=False)
    (root / TRACKER).write_text("15")
    assert repair_tracker(root) == 10 and tracker(root) == "10"


@pytest.mark.parametrize("damage", ["missing", "short", "long", "folder"])
def test_a_damaged_file_is_found(root: Path, damage: str) -> None:
    file = root / "global_step_10" / "actor" / "model.pt"
    if damage in ("missing", "folder"):
        file.unlink()
    else:
        file.write_bytes(b"w" * (10 if damage == "short" else 1000))
    if damage == "folder":
        file.mkdir()
    assert repair_tracker(root) == 5 and tracker(root) == "5"


@pytest.mark.parametrize("text", ["", '{"step": 10, "fil', "[]", "{}", '{"files": null}', '{"files": ["a"]}', "\x00"])
def test_a_half_written_marker_is_no_marker(root: Path, text: str) -> None:
    (root / "global_step_10" / MARKER).write_text(text)
    assert not is_complete(root / "global_step_10") and repair_tracker(root) == 5


def test_a_marker_killed_before_its_rename_is_no_marker(root: Path) -> None:
    folder = root / "global_step_10"
    (folder / MARKER).rename(folder / (MARKER + ".part"))
    assert repair_tracker(root) == 5


def test_nothing_complete_means_from_the_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert repair_tracker(tmp_path) is None and not caplog.records
    write_step(tmp_path, 5, complete=False)
    (tmp_path / TRACKER).write_text("5")
    with caplog.at_level(logging.WARNING):
        assert repair_tracker(tmp_path) is None
    assert not (tmp_path / TRACKER).exists() and "starting from the beginning" in caplog.text


def test_steps_are_numbers_and_other_folders_are_ignored(root: Path) -> None:
    write_step(root, 100)
    (root / "global_step_best").mkdir()
    (root / "global_step_").mkdir()
    assert complete_steps(root) == [5, 10, 100], "not sorted as text"


def test_the_marker_lists_every_file_and_no_other(root: Path) -> None:
    folder = root / "global_step_10"
    marker = json.loads((folder / MARKER).read_text())
    sizes = {name: facts["size"] for name, facts in marker["files"].items()}
    assert marker["step"] == 10 and sizes == {"actor/model.pt": 110, "data.pt": 1}
    mark_complete(folder, 10)
    assert json.loads((folder / MARKER).read_text()) == marker
    assert not list(root.rglob("*.part*"))


def kept(root: Path) -> list[int]:
    return [step for step, _ in step_folders(root)]


def test_only_the_newest_complete_steps_stay(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        write_step(tmp_path, step)
    write_step(tmp_path, 8, complete=False)
    prune_steps(tmp_path, 10, {"max_actor_ckpt_to_keep": None})
    assert kept(tmp_path) == [2, 8, 9, 10]
    prune_steps(tmp_path, 10, {"max_actor_ckpt_to_keep": 2})
    assert kept(tmp_path) == [9, 10], "not sorted as text, and what was never finished goes too"
    prune_steps(tmp_path, 10, {"max_actor_ckpt_to_keep": 2, "remove_previous_ckpt_in_save": True})
    assert kept(tmp_path) == [10]


def test_nothing_is_removed_before_the_new_step_is_complete(tmp_path: Path) -> None:
    write_step(tmp_path, 9)
    write_step(tmp_path, 10, complete=False)
    prune_steps(tmp_path, 10, {"max_actor_ckpt_to_keep": 1})
    assert kept(tmp_path) == [9, 10] and complete_steps(tmp_path) == [9]


def test_steps_above_the_saved_one_count_for_nothing(tmp_path: Path) -> None:
    """A new run in the place of an old one would otherwise remove what it has just written."""
    for step in (50, 900, 1000):
        write_step(tmp_path, step)
    prune_steps(tmp_path, 50, {"max_actor_ckpt_to_keep": 1})
    assert kept(tmp_path) == [50, 900, 1000]


def test_a_step_that_lies_elsewhere_is_left_alone(tmp_path: Path) -> None:
    write_step(tmp_path / "other_disk", 5)
    write_step(tmp_path / "run", 10)
    (tmp_path / "run" / "global_step_5").symlink_to(tmp_path / "other_disk" / "global_step_5")
    prune_steps(tmp_path / "run", 10, {"max_actor_ckpt_to_keep": 1})
    assert complete_steps(tmp_path / "run") == [5, 10]


@pytest.mark.parametrize("keys", [{"max_actor_ckpt_to_keep": 1}, {"remove_previous_ckpt_in_save": True}])
def test_verl_is_told_to_keep_every_step_while_it_saves(keys: dict) -> None:
    config = OmegaConf.create({"trainer": keys})
    with pytest.raises(OSError, match="disk"), verl_keeps_all(config):
        assert not any(config.trainer.values())
        raise OSError("the disk is full")
    assert dict(config.trainer) == keys


def test_a_step_that_is_saved_again_makes_way_for_its_folders(tmp_path: Path) -> None:
    folder = write_step(tmp_path, 4)
    for name in ("decoder", "captioner", "decoder.part-17", "decoder_policy"):
        (folder / name).mkdir()
        (folder / name / "weights").write_text("old")
    mark_complete(folder, 4)
    clear_exports(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["actor", "data.pt", "decoder_policy"]
    assert not is_complete(folder) and complete_steps(tmp_path) == []
    clear_exports(folder)
    clear_exports(tmp_path / "global_step_5")


def saving(root: Path, export: str = "last") -> DecoderCheckpoints:
    """A trainer of four steps whose policy has no shards."""
    checkpoints = DecoderCheckpoints()
    uae = {"train": {"save_contents": ["model", "diffusers"]}, "checkpoint": {"export": export}}
    checkpoints.config = OmegaConf.create({"uae": uae, "data": {}})
    checkpoints.global_steps = checkpoints.total_training_steps = 4
    checkpoints.training_prompts = list
    checkpoints.learner = SimpleNamespace(
        save=lambda out, step: Path(out).mkdir(parents=True, exist_ok=True),
        export=lambda out, entries: publish_folder(lambda path: (path / "weights").touch(), out),
    )
    return checkpoints


def test_a_decoder_can_be_saved_twice_into_one_step(tmp_path: Path) -> None:
    """Killed after its folder was published and before the step was marked, a run comes by again."""
    folder = tmp_path / "global_step_4"
    for _ in range(2):
        saving(tmp_path).save_decoder(folder)
        assert (folder / "decoder" / "weights").exists()


@pytest.mark.parametrize(("export", "exported"), [("last", [4]), ("every", [2, 3, 4])])
def test_the_whole_decoder_is_written_at_the_end_or_where_it_is_asked_for(
    tmp_path: Path, export: str, exported: list[int]
) -> None:
    checkpoints = saving(tmp_path, export)
    for checkpoints.global_steps in (2, 3, 4):
        checkpoints.save_decoder(tmp_path / f"global_step_{checkpoints.global_steps}")
    assert [step for step, folder in step_folders(tmp_path) if (folder / "decoder").exists()] == exported
