# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from verl_uae.data.cache import (
    TensorCache,
    condition_fingerprint,
    fingerprint_of_folder,
    latent_fingerprint,
    latent_name,
)
from verl_uae.errors import CheckpointError

TENSORS = {
    "states": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    "mean": torch.linspace(-1, 1, 5),
    "truncated": torch.tensor(True),
}


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "cache", "maker")


def same(found: dict | None, expected: dict = TENSORS) -> bool:
    return found is not None and found.keys() == expected.keys() and all(found[k].equal(expected[k]) for k in expected)


def test_what_was_put_comes_back(cache: TensorCache) -> None:
    assert cache.get("a caption") is None
    cache.put("a caption", TENSORS)
    found = cache.get("a caption")
    assert same(found) and found is not None and found["states"].dtype is torch.bfloat16
    assert cache.get("another caption") is None
    assert cache.counters() == {"hits": 1, "misses": 2, "writes": 1, "corrupt": 0}
    file = cache.path_of("a caption")
    assert file.parent.name == file.name[:2] and list(cache.folder.rglob("*.*")) == [file]
    assert load_file(file)["mean"].equal(TENSORS["mean"])


@pytest.mark.parametrize("name", ["", "a/b/../../x", "\ud800 lone surrogate", "x" * 100_000, "é", "e\u0301"])
def test_any_text_is_a_name(cache: TensorCache, name: str) -> None:
    cache.put(name, TENSORS)
    assert same(cache.get(name))
    assert cache.path_of(name).parent.parent == cache.folder


def test_parts_of_one_tensor_are_kept_as_they_are(cache: TensorCache) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    cache.put("x", {"row": whole[1], "column": whole[:, 2], "turned": whole.T})
    assert same(cache.get("x"), {"row": whole[1], "column": whole[:, 2], "turned": whole.T})


def test_tensors_outlive_their_file(cache: TensorCache) -> None:
    cache.put("x", TENSORS)
    found = cache.get("x")
    shutil.rmtree(cache.folder)
    assert same(found)
    assert cache.get("x") is None


def test_another_maker_has_its_own_items(cache: TensorCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.put("x", TENSORS)
    other = TensorCache(cache.folder, "another maker")
    assert other.get("x") is None and not caplog.records
    # A file of the one under the name of the other is not believed.
    other.path_of("x").parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cache.path_of("x"), other.path_of("x"))
    assert other.get("x") is None and other.corrupt == 1
    assert str(other.path_of("x")) in caplog.text and "made by something else" in caplog.text
    assert not other.path_of("x").exists() and same(cache.get("x"))


def test_a_file_under_the_wrong_name_is_not_believed(cache: TensorCache) -> None:
    cache.put("x", TENSORS)
    cache.path_of("y").parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cache.path_of("x"), cache.path_of("y"))
    assert cache.get("y") is None and cache.corrupt == 1


def test_a_file_of_somebody_else_is_made_again(cache: TensorCache) -> None:
    cache.path_of("x").parent.mkdir(parents=True)
    save_file({"states": torch.zeros(3)}, cache.path_of("x"))
    assert cache.get("x") is None and cache.corrupt == 1
    cache.put("x", TENSORS)
    assert same(cache.get("x"))


def test_every_damage_is_found_and_mended(cache: TensorCache, caplog: pytest.LogCaptureFixture) -> None:
    """300 files with a flipped bit, a lost end or a foreign content, in header and tensors alike."""
    rng = random.Random(0)
    cache.put("x", TENSORS)
    file, good = cache.path_of("x"), cache.path_of("x").read_bytes()
    for round_ in range(300):
        bad = bytearray(good)
        if round_ % 3 == 0:
            bad = bad[: rng.randrange(len(bad))]
        elif round_ % 3 == 1:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:
            bad = bytearray(rng.randbytes(rng.randrange(200)))
        file.write_bytes(bad)
        found = cache.get("x")
        # A flip that JSON does not notice, such as one in the case of an unused word, leaves the right tensors.
        assert found is None or same(found)
        if found is None:
            assert not file.exists() and caplog.records[-1].getMessage().startswith(str(file))
        cache.put("x", TENSORS)
        assert same(cache.get("x"))
    assert cache.corrupt >= 290


def test_a_full_disk_stops_writing_and_nothing_else(cache: TensorCache, caplog: pytest.LogCaptureFixture) -> None:
    """The limit on file sizes is the one full disk a test can have."""
    cache.put("small", {"x": torch.zeros(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        for name in ("large", "larger"):
            cache.put(name, {"x": torch.zeros(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cache.put("small too", {"x": torch.zeros(10)})
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    assert "only read from now on" in caplog.text
    assert cache.get("large") is None and cache.get("small too") is None and cache.get("small") is not None
    assert cache.writes == 1 and len(list(cache.folder.rglob("*.*"))) == 1


def test_a_folder_that_cannot_be_made_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = TensorCache(tmp_path / "file", "maker")
    assert cache.get("x") is None
    cache.put("x", TENSORS)
    assert cache.get("x") is None and cache.writes == 0


def _fill(folder: Path, start: int) -> None:
    torch.set_num_threads(1)
    cache = TensorCache(folder, "maker")
    for number in range(200):
        name = str((start + number) % 20)
        found = cache.get(name)
        assert found is None or found["x"].eq(int(name)).all()
        cache.put(name, {"x": torch.full((500,), int(name))})
    assert cache.corrupt == 0


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(tmp_path, start)) for start in (0, 7, 14)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 20 and {path.suffix for path in files} == {".safetensors"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    save_file({"w": torch.zeros(4)}, folder / "model.safetensors")
    save_file({"w": torch.ones(4)}, folder / "part" / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_fingerprint_is_of_names_and_contents(model: Path, tmp_path: Path) -> None:
    before = fingerprint_of_folder(model)
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    assert len(before) == 64 and fingerprint_of_folder(copy) == fingerprint_of_folder(str(model)) == before
    (copy / "README.md").write_text("about")
    (copy / "manifest.json").write_text("{}")
    assert fingerprint_of_folder(copy) == before
    os.rename(copy / "part" / "model.safetensors", copy / "part" / "weights.safetensors")
    assert fingerprint_of_folder(copy) != before


def test_fingerprint_follows_links_to_files(model: Path, tmp_path: Path) -> None:
    """Snapshots of a model hub are folders of links."""
    linked = tmp_path / "linked"
    (linked / "part").mkdir(parents=True)
    for name in ("model.safetensors", "part/model.safetensors", "config.json"):
        (linked / name).symlink_to(model / name)
    assert fingerprint_of_folder(linked) == fingerprint_of_folder(model)


@pytest.mark.parametrize("file", ["model.safetensors", "part/model.safetensors", "config.json"])
def test_fingerprint_changes_with_every_file(model: Path, file: str) -> None:
    """Also where size and all but one byte stay."""
    before = fingerprint_of_folder(model)
    content = bytearray((model / file).read_bytes())
    content[-1] ^= 1
    (model / file).write_bytes(content)
    os.utime(model / file, ns=(1, 1))
    assert fingerprint_of_folder(model) != before


def test_fingerprint_is_not_read_twice(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_of_folder(model)
    opened: list[object] = []
    monkeypatch.setattr("builtins.open", lambda *arguments: opened.append(arguments))
    assert fingerprint_of_folder(model) == before and not opened


def test_folders_without_a_model_are_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=str(folder)):
            fingerprint_of_folder(folder)


def test_everything_that_makes_a_tensor_is_in_its_fingerprint(model: Path) -> None:
    names = [
        latent_fingerprint(model, torch.float32),
        latent_fingerprint(model, torch.bfloat16),
        latent_fingerprint(model / "part", torch.float32),
        condition_fingerprint(model, torch.float32, length=8, role="generate"),
        condition_fingerprint(model, torch.float32, length=9, role="generate"),
        condition_fingerprint(model, torch.float32, length=8, role="user"),
        condition_fingerprint(model, torch.bfloat16, length=8, role="generate"),
        condition_fingerprint(model / "part", torch.float32, length=8, role="generate"),
    ]
    assert len(set(names)) == len(names)
    assert latent_fingerprint(model, torch.float32) == names[0]
    pictures = {latent_name(key, size) for key in ("aa", "bb") for size in ((64, 32), (32, 64), (6, 432))}
    assert len(pictures) == 6
