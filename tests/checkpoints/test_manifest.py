# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from verl_uae import __version__
from verl_uae.checkpoints.manifest import read_manifest, verify_folder, verify_part, write_manifest
from verl_uae.checkpoints.names import MANIFEST
from verl_uae.errors import CheckpointError


def fill(folder: Path) -> None:
    (folder / "part").mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, folder / "part" / "model.safetensors")
    (folder / "config.json").write_text("{}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "model")
    write_manifest(tmp_path / "model")
    return tmp_path / "model"


def test_the_manifest_names_every_file_with_size_and_digest(folder: Path) -> None:
    content = verify_folder(folder)
    assert set(content["files"]) == {"config.json", "part/model.safetensors"}
    for name, facts in content["files"].items():
        data = (folder / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert content["versions"]["verl_uae"] == __version__ and content["versions"]["torch"] == torch.__version__
    assert json.loads((folder / MANIFEST).read_text())["files"] == content["files"]


def test_writing_it_again_changes_nothing(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST).read_bytes() == before


def missing(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


def longer(folder: Path) -> str:
    (folder / "config.json").write_text("{ }")
    return "config.json"


def altered(folder: Path) -> str:
    (folder / "config.json").write_text("[]")
    return "config.json"


def extra_weights(folder: Path) -> str:
    save_file({"a": torch.ones(3)}, folder / "part" / "adapter_model.safetensors")
    return "part/adapter_model.safetensors"


def extra_file(folder: Path) -> str:
    (folder / "part" / "model.safetensors.index.json").write_text("{}")
    return "part/model.safetensors.index.json"


def pickle_beside(folder: Path) -> str:
    (folder / "part" / "pytorch_model.bin").touch()
    return "part/pytorch_model.bin"


def no_manifest(folder: Path) -> str:
    (folder / MANIFEST).unlink()
    return MANIFEST


def half_manifest(folder: Path) -> str:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:-10])
    return MANIFEST


def other_version_in_manifest(folder: Path) -> str:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace(__version__, "9.9.9"))
    return MANIFEST


def spaces_in_manifest(folder: Path) -> str:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text() + " ")
    return MANIFEST


CASES = [missing, longer, altered, extra_weights, extra_file, pickle_beside, no_manifest, half_manifest]
CASES += [other_version_in_manifest, spaces_in_manifest]


@pytest.mark.parametrize("damage", CASES, ids=lambda case: case.__name__)
def test_what_is_wrong_is_named(folder: Path, damage: object) -> None:
    name = damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError) as caught:
        verify_folder(folder)
    assert caught.value.path == folder / name


def test_a_folder_without_manifest_is_told_which_folders_have_one(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="there is no such file; every model folder that `verl-uae import` or"):
        verify_folder(folder)


def test_a_sound_manifest_over_unsound_weights_is_not_enough(folder: Path) -> None:
    (folder / "part" / "model.safetensors").write_bytes(b"nothing")
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a sound"):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["../other.json", "/etc/hostname", "part/../../other.json"])
def test_a_manifest_cannot_name_files_outside(folder: Path, name: str) -> None:
    from verl_uae.checkpoints.manifest import _render

    content = read_manifest(folder)
    content["files"][name] = content["files"]["config.json"]
    (folder / MANIFEST).write_text(_render(content))
    with pytest.raises(CheckpointError, match="names files outside"):
        verify_folder(folder)


def test_another_format_is_refused(folder: Path) -> None:
    from verl_uae.checkpoints.manifest import _render

    content = read_manifest(folder)
    (folder / MANIFEST).write_text(_render({**content, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, known is 1"):
        verify_folder(folder)


def test_no_manifest_is_written_over_a_pickle(folder: Path) -> None:
    (folder / "optimizer.pt").touch()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: pickles are refused"):
        write_manifest(folder)


def test_hidden_files_and_links_of_the_hub_cache_are_accepted(folder: Path, tmp_path: Path) -> None:
    """The hub keeps a snapshot's files as links to the repository's blobs."""
    snapshot = tmp_path / "models--some--uae" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for number, file in enumerate((snapshot / "config.json", snapshot / "part" / "model.safetensors")):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    (snapshot / ".gitattributes").touch()
    verify_folder(snapshot)
    assert verify_part(snapshot / "part")
    with pytest.raises(CheckpointError, match="is not a folder"):
        verify_folder(snapshot / "config.json")


def link_to_equal_bytes(folder: Path) -> str:
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to("../elsewhere.json")
    return "config.json"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "part" / "pipe")
    return "part/pipe"


def dangling_link(folder: Path) -> str:
    (folder / "part" / "extra.json").symlink_to("nowhere")
    return "part/extra.json"


def linked_folder(folder: Path) -> str:
    (folder / "part" / "extra").symlink_to("/etc")
    return "part/extra"


def linked_weights(folder: Path) -> str:
    (folder / "part" / "model.safetensors").unlink()
    (folder / "part" / "model.safetensors").symlink_to("/etc/passwd")
    return "part/model.safetensors"


@pytest.mark.parametrize("attack", [link_to_equal_bytes, pipe, dangling_link, linked_folder, linked_weights])
def test_what_is_no_plain_file_of_the_folder_is_refused(folder: Path, attack: Callable[[Path], str]) -> None:
    name = attack(folder)
    with pytest.raises(CheckpointError, match="is no plain file of the folder") as caught:
        verify_folder(folder)
    assert caught.value.path == folder / name


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "../part/model.safetensors", "x.bin"])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    fill(tmp_path / "model")
    index = tmp_path / "model" / "part" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": target}}))
    write_manifest(tmp_path / "model")
    with pytest.raises(CheckpointError, match="is not a safetensors file beside it"):
        verify_folder(tmp_path / "model")


def test_code_that_a_library_would_run_is_refused_unless_it_was_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "model")
    (tmp_path / "model" / "part" / "evil.py").write_text("1 / 0")
    (tmp_path / "model" / "part" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Evil"}}')
    write_manifest(tmp_path / "model")
    with pytest.raises(CheckpointError, match="needs Python code of its own"):
        verify_folder(tmp_path / "model")
    verify_folder(tmp_path / "model", code=True)


def test_a_part_is_checked_alone_by_the_manifest_around_it(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("altered")
    assert verify_part(folder / "part")
    (folder / "part" / "extra.txt").touch()
    with pytest.raises(CheckpointError, match=r"part/extra\.txt: a file that manifest\.json does not name"):
        verify_part(folder / "part")
    (folder / "other").mkdir()
    assert not verify_part(folder / "other") and not verify_part(tmp_path)


def test_a_pipe_in_its_place_is_not_waited_for(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        verify_folder(folder)
    with pytest.raises(CheckpointError, match="not a regular file"):
        verify_part(folder)
