# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verl_uae.checkpoints.export import ExportSettings, export_checkpoint
from verl_uae.checkpoints.names import MARKER
from verl_uae.checkpoints.step import check_resumed, check_step, is_complete, mark_complete, read_marker
from verl_uae.errors import CheckpointError
from verl_uae.files import PARTIAL


def write_step(folder: Path, content: bytes = b"weights of this run", *, digests: bool = True) -> Path:
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "model.pt").write_bytes(content)
    (folder / "data.pt").write_bytes(b"place")
    mark_complete(folder, 7, digests=digests)
    return folder


@pytest.fixture
def step(tmp_path: Path) -> Path:
    return write_step(tmp_path / "run" / "global_step_7")


def test_the_marker_holds_size_and_sha256_of_every_file(step: Path) -> None:
    content = b"weights of this run"
    files = json.loads((step / MARKER).read_text())["files"]
    assert files["actor/model.pt"] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(files) == {"actor/model.pt", "data.pt"} and check_step(step).step == 7


@pytest.mark.parametrize("bit", range(0, 8 * 19, 7))
def test_every_flipped_bit_is_found_and_named(step: Path, bit: int) -> None:
    file = step / "actor" / "model.pt"
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    assert is_complete(step), "its size is right"
    with pytest.raises(CheckpointError, match="altered, or of another run") as caught:
        check_step(step)
    assert caught.value.path == file


def test_a_file_of_another_run_is_found_and_named(step: Path, tmp_path: Path) -> None:
    other = write_step(tmp_path / "other" / "global_step_7", b"WEIGHTS OF THAT RUN")
    shutil.copy(other / "actor" / "model.pt", step / "actor" / "model.pt")
    with pytest.raises(CheckpointError, match=r"actor/model\.pt: altered, or of another run"):
        check_step(step)


def test_a_folder_under_the_name_of_another_step_is_refused(step: Path) -> None:
    renamed = step.rename(step.with_name("global_step_8"))
    with pytest.raises(CheckpointError, match="is of step 7, the folder is called global_step_8"):
        check_step(renamed)
    assert check_step(renamed.rename(step.with_name("best"))).step == 7


def test_digests_can_be_left_out(tmp_path: Path) -> None:
    step = write_step(tmp_path / "global_step_7", digests=False)
    assert json.loads((step / MARKER).read_text())["files"] == {"actor/model.pt": 19, "data.pt": 5}
    (step / "actor" / "model.pt").write_bytes(b"WEIGHTS of this run")
    assert check_step(step).files["data.pt"] == (5, None)


def marker_with(**changes: Any) -> Callable[[dict], str]:
    return lambda marker: json.dumps(marker | changes)


BROKEN: dict[str, Callable[[dict], str | bytes]] = {
    "empty": lambda _: "",
    "half": lambda marker: json.dumps(marker)[:30],
    "binary": lambda _: bytes(range(256)),
    "deep": lambda _: "[" * 100_000,
    "deep object": lambda _: '{"files":' * 100_000,
    "list": lambda _: "[]",
    "no files": marker_with(files={}),
    "files null": marker_with(files=None),
    "files a list": marker_with(files=["data.pt"]),
    "size negative": marker_with(files={"data.pt": -1}),
    "size a bool": marker_with(files={"data.pt": True}),
    "size a text": marker_with(files={"data.pt": "5"}),
    "no digest": marker_with(files={"data.pt": {"size": 5}}),
    "step a text": marker_with(step="7"),
    "long number": lambda _: '{"step": 7, "files": {"data.pt": ' + "9" * 5000 + "}}",
    "absolute": marker_with(files={"/etc/passwd": os.path.getsize("/etc/passwd")}),
    "above": marker_with(files={"../global_step_7/data.pt": 5}),
    "nul": marker_with(files={"data.pt\0": 5}),
    "surrogate": marker_with(files={"\ud800": 5}),
    "long name": marker_with(files={"a" * 5000: 5}),
    "another encoding": lambda content: json.dumps(content).encode("utf-16"),
    "a huge step": marker_with(step=-(10**4000)),
    "a key twice": lambda content: json.dumps(content).replace('"files"', '"files": {}, "files"', 1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_marker_is_no_marker_and_no_traceback(step: Path, how: str) -> None:
    text = BROKEN[how](json.loads((step / MARKER).read_text()))
    (step / MARKER).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    assert not is_complete(step)
    with pytest.raises(CheckpointError) as caught:
        check_step(step)
    assert len(str(caught.value)) < 600 or how == "long name"


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling"])
def test_a_marker_that_is_no_file_is_no_marker(step: Path, kind: str) -> None:
    (step / MARKER).unlink()
    if kind == "folder":
        (step / MARKER).mkdir()
    elif kind == "pipe":
        os.mkfifo(step / MARKER)
    else:
        (step / MARKER).symlink_to(step / "gone")
    assert not is_complete(step)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_marker(step)


def test_the_step_that_is_meant_is_named(step: Path) -> None:
    """By its parent, or by a part of it; the newest of several."""
    older = step.parent / "global_step_3"
    older.mkdir()
    (older / MARKER).write_text("{}")
    with pytest.raises(CheckpointError, match=f"a step folder within it is {step.name}$"):
        read_marker(step.parent)
    with pytest.raises(CheckpointError, match=f"the step folder is {step}$"):
        read_marker(step / "actor")


def test_a_folder_that_is_not_there_is_not_called_incomplete(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_marker(tmp_path / "global_step_9")
    assert str(caught.value) == f"{tmp_path / 'global_step_9'}: there is no such folder"


def test_what_a_killed_run_left_of_a_marker_is_not_listed(step: Path) -> None:
    for unfinished in (step / f".{MARKER}.17{PARTIAL}", step / "actor" / f".base.json.17{PARTIAL}"):
        unfinished.write_text("{")
    mark_complete(step, 7)
    assert set(read_marker(step).files) == {"actor/model.pt", "data.pt"}


def test_shards_that_the_marker_does_not_name_are_of_another_run(step: Path) -> None:
    """A run of two ranks in the place of one of one rank: verl would load its pickles."""
    (step / "actor" / "notes.txt").write_text("a person may leave something here")
    assert check_step(step).step == 7
    (step / "actor" / "model_world_size_2_rank_0.pt").write_bytes(b"of another run")
    with pytest.raises(CheckpointError, match=r"model_world_size_2_rank_0\.pt: .* does not name it"):
        check_step(step)


def test_a_step_of_an_older_version_is_resumed_once_its_folders_are_renamed(tmp_path: Path) -> None:
    folder, marker = tmp_path / "global_step_2", tmp_path / "global_step_2" / MARKER
    for name in ("encoder", "encoder_policy"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_text(name)
    mark_complete(folder, 2)
    for old, new in (("encoder", "captioner"), ("encoder_policy", "captioner_policy")):
        words = rf"{old}: is of an older version of verl_uae: .* {new}/ now; rename it, .*begin with {old}/ in {MARKER}"
        for read in (
            lambda: check_resumed(folder, digests=True),
            lambda: export_checkpoint(folder, tmp_path / "out", ExportSettings()),
        ):
            with pytest.raises(CheckpointError, match=words):
                read()
        (folder / old).rename(folder / new)
        marker.write_text(marker.read_text().replace(f'"{old}/', f'"{new}/'))
    check_resumed(folder, digests=True)
