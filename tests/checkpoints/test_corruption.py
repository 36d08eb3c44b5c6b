# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Damage of a published folder is found, and a crash while saving loses nothing that was saved before."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.conftest import smallest_parts
from verl_uae.checkpoints.assemble import publish_model
from verl_uae.checkpoints.manifest import files_below, verify_folder
from verl_uae.errors import CheckpointError

CASES = 1000


def test_every_truncation_and_bit_flip_is_refused_by_name(small_folder: Path) -> None:
    rng = random.Random(0)
    files = files_below(small_folder)
    assert len(files) == 10
    contents = {path: path.read_bytes() for path in files}
    hit: set[tuple[Path, bool]] = set()
    for case in range(CASES):
        path, truncate = files[case % len(files)], rng.random() < 0.5
        data = bytearray(contents[path])
        if truncate:
            del data[rng.randrange(len(data)) :]
        else:
            place = rng.randrange(8 * len(data))
            data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            verify_folder(small_folder)
        assert caught.value.path == path, (case, path, truncate)
        path.write_bytes(contents[path])
        hit.add((path, truncate))
    assert len(hit) == 2 * len(files)
    verify_folder(small_folder)


#: Where the process dies: function, and at which of its calls in one save.
POINTS: list[tuple[Any, str, int]] = [
    (Path, "mkdir", 1),
    (Path, "write_text", 1),
    (Path, "write_text", 2),
    (Path, "write_text", 3),
    (os, "fsync", 1),
    (os, "fsync", 9),
    (os, "replace", 1),
    (os, "fsync", -1),
]


def dying(owner: Any, name: str, call: int, die: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the function call ``die`` instead at its ``call``-th call; -1 is the first one after the rename."""
    original, calls = getattr(owner, name), [0]
    renamed = os.replace

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            die()
        return original(*args, **kwargs)

    def arm(*args: Any, **kwargs: Any) -> Any:
        renamed(*args, **kwargs)
        calls[0] = -2

    monkeypatch.setattr(owner, name, counted)
    if call == -1:
        monkeypatch.setattr(os, "replace", arm)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[1]} {point[2]}")
def test_a_process_that_dies_while_saving_loses_nothing(
    small_folder: Path, point: tuple[Any, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_folder.parent / "next"
    before = verify_folder(small_folder)
    child = os.fork()
    if child == 0:
        dying(*point, lambda: os._exit(9), monkeypatch)
        publish_model(smallest_parts(), out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "the process did not get to this point"
    assert verify_folder(small_folder) == before
    left = {path.name for path in small_folder.parent.iterdir()} - {"small"}
    if point[2] == -1:
        assert left == {"next"} and verify_folder(out)
    else:
        assert left <= {f"next.part-{child}"}
        publish_model(smallest_parts(), out)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[1]} {point[2]}")
def test_a_disk_that_fails_while_saving_leaves_no_half_folder(
    small_folder: Path, point: tuple[Any, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_folder.parent / "next"

    def full() -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        dying(*point, full, patch)
        with pytest.raises(CheckpointError, match="No space left"):
            publish_model(smallest_parts(), out)
    verify_folder(small_folder)
    assert not list(small_folder.parent.glob("*.part-*"))
    if out.exists():
        assert point[2] == -1 and verify_folder(out)
        shutil.rmtree(out)
    publish_model(smallest_parts(), out)


def test_saving_over_a_good_folder_is_refused_and_changes_nothing(small_folder: Path) -> None:
    before = verify_folder(small_folder)
    with pytest.raises(CheckpointError, match="exists already"):
        publish_model(smallest_parts(), small_folder)
    assert verify_folder(small_folder) == before
