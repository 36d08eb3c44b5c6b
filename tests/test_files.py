# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.source import modules, relative
from verl_uae.errors import CheckpointError
from verl_uae.files import (
    PARTIAL,
    append_line,
    open_regular,
    publish_folder,
    published,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)

#: Every way to publish a file: what writes "new" over a file.
WRITERS: list[Callable[[Path], None]] = [
    lambda path: write_bytes(path, b"new"),
    lambda path: write_text(path, "new", sync=True),
    lambda path: write_json(path, "new"),
]


def fill(folder: Path) -> None:
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("write", WRITERS)
def test_a_writer_that_is_killed_leaves_the_old_file(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Killed with the new content written and before the rename."""
    path = tmp_path / "state.json"
    path.write_text("old")
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write(path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == "old"
    [left] = set(tmp_path.iterdir()) - {path}
    assert left.name.startswith(".state.json.") and left.suffix == PARTIAL and "new" in left.read_text()
    write(path)
    assert "new" in path.read_text() and set(tmp_path.iterdir()) == {path, left}


def test_many_writers_of_one_file_never_mix(tmp_path: Path) -> None:
    texts = [letter * 100_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(len(texts)) as writers:
        for _ in range(5):
            list(writers.map(lambda text: write_text(tmp_path / "file", text), texts))
            assert (tmp_path / "file").read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_a_temporary_file_can_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with published(tmp_path / "pictures" / "a.png", beside=tmp_path / "records.jsonl") as (temporary,):
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"a")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["pictures", "pictures/a.png"]


def test_files_are_on_disk_before_the_first_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("rename"), replace(*names)))
    with published(tmp_path / "a", tmp_path / "b") as temporary:
        for path in temporary:
            path.touch()
    assert events == ["sync", "sync", "rename", "rename"]
    events.clear()
    write_bytes(tmp_path / "a", b"")
    assert events == ["rename"]


def test_what_no_encoding_holds_is_written_as_an_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "page", "é bad\udcff")
    assert (tmp_path / "page").read_bytes() == "é bad\\udcff".encode()
    write_json(tmp_path / "json", {"é": "bad\udcff"})
    assert (tmp_path / "json").read_text(encoding="utf-8").startswith('{\n  "é"')
    assert json.loads((tmp_path / "json").read_bytes()) == {"é": "bad\udcff"}


def test_json_holds_no_number_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_lines_are_added_behind_each_other(tmp_path: Path) -> None:
    for line in ("é", "b"):
        append_line(tmp_path / "list", line)
    assert (tmp_path / "list").read_bytes() == "é\nb\n".encode()


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_files_appear_together_after_success(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    b.write_text("old")
    with published(a, b, tmp_path / "never written") as (new_a, new_b, _):
        new_a.write_text("1")
        new_b.write_text("2")
        assert not a.exists() and b.read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "1", "b": "2"}


def test_nothing_changes_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), published(tmp_path / "a", tmp_path / "b") as (new_a, new_b):
        new_a.write_text("half")
        new_b.write_text("half")
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"

    def build(folder: Path) -> None:
        assert folder.parent == out.parent and folder.name == f"model.part-{os.getpid()}" and not out.exists()
        fill(folder)

    publish_folder(build, out)
    assert (out / "part" / "model.safetensors").is_file() and os.listdir(out.parent) == ["model"]


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("model", "link"):
        with pytest.raises(CheckpointError, match="exists already"):
            publish_folder(fill, tmp_path / name)
    assert not list((tmp_path / "model").iterdir())


def test_nothing_is_left_of_a_build_that_failed(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        fill(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_folder(build, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_file_of_a_build_that_failed_is_named_by_its_place(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise CheckpointError(folder / "vae", f"{folder}/vae/config.json does not fit")

    with pytest.raises(CheckpointError) as caught:
        publish_folder(build, tmp_path / "model")
    assert str(caught.value) == f"{tmp_path}/model/vae: {tmp_path}/model/vae/config.json does not fit"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        publish_folder(fill, tmp_path / "file" / "model")


def test_everything_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    publish_folder(fill, tmp_path / "model")
    part = f"{tmp_path}/model.part-{os.getpid()}"
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    wanted = {part, f"{part}/part", f"{part}/part/model.safetensors", f"{part}/config.json"}
    assert set(before) == wanted and after == [str(tmp_path)]


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory|No such file"):
            open_regular(path)
    (tmp_path / "file").write_bytes(b"content")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


def test_no_other_module_publishes_files_itself() -> None:
    own = re.compile(r"os\.(replace|rename)\(|NamedTemporaryFile|mkstemp")
    assert [relative(path) for path in modules() if own.search(path.read_text(encoding="utf-8"))] == ["files.py"]
