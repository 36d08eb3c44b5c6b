# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_uae.checkpoints.source import brought_code, check_pin, local_folder
from verl_uae.errors import CheckpointError, ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = {"auto_map": {"AutoModel": "modeling.Model"}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with the repository ``owner/model`` at one commit, as huggingface_hub lays it out; no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repository = cache / "models--owner--model"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "encoder").mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CODE))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert local_folder(tmp_path) == tmp_path


def test_a_local_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a local folder and has no revision"):
        local_folder(tmp_path, revision=COMMIT)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("owner/unknown", "is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"),
        ("no/such/folder", "there is no such folder"),
        ("/nowhere", "there is no such folder"),
        ("bad name", "a hub id is owner/name"),
    ],
)
def test_what_is_neither_folder_nor_on_the_hub_is_named(source: str, why: str, hub: Path) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        local_folder(source)
    assert str(caught.value).startswith(source)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "encoder/tokenizer_config.json"])
def test_code_of_a_folder_is_refused_with_the_file_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / name).write_text(json.dumps(CODE))
    assert brought_code(tmp_path) == [name]
    with pytest.raises(CheckpointError, match="needs Python code of its own") as caught:
        local_folder(tmp_path)
    assert caught.value.path == tmp_path / name


def test_classes_of_other_libraries_are_code(tmp_path: Path) -> None:
    index: dict[str, object] = {
        "_class_name": "UAEPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "conditioner": ["verl_uae.chain.projector", "Projector"],
        "safety_checker": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert brought_code(tmp_path) == []
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "transformer": ["my_code", "Model"]}))
    assert brought_code(tmp_path) == ["model_index.json"]


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: is not"):
        local_folder(tmp_path)


@pytest.mark.parametrize("revision", [None, "", "main", COMMIT[:39], COMMIT + "0", COMMIT.upper(), "g" * 40, "v1.0"])
def test_code_needs_a_full_commit(revision: str | None) -> None:
    with pytest.raises(ConfigError, match="40 hexadecimal digits"):
        check_pin(True, revision)
    check_pin(False, revision)


def test_code_of_a_hub_repository_is_accepted_pinned_only(hub: Path) -> None:
    with pytest.raises(CheckpointError, match="needs Python code of its own"):
        local_folder("owner/model", revision=COMMIT)
    with pytest.raises(ConfigError, match="40 hexadecimal digits"):
        local_folder("owner/model", revision="main", remote_code=True)
    assert local_folder("owner/model", revision=COMMIT, remote_code=True) == hub


def test_code_of_a_local_folder_cannot_be_pinned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CODE))
    with pytest.raises(ConfigError, match="has no revision"):
        local_folder(tmp_path, revision=COMMIT, remote_code=True)
