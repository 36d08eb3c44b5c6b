# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from verl_uae.checkpoints.source import (
    PICKLES,
    brought_code,
    check_pin,
    check_safetensors,
    files_below,
    local_folder,
    pickles,
    read_tensors,
    same_tensors,
    weight_files,
)
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
    (snapshot / "captioner").mkdir(parents=True)
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


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "captioner/tokenizer_config.json"])
def test_code_of_a_folder_is_refused_with_the_file_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "captioner").mkdir()
    (tmp_path / name).write_text(json.dumps(CODE))
    assert brought_code(tmp_path) == [name]
    with pytest.raises(CheckpointError, match="needs Python code of its own") as caught:
        local_folder(tmp_path)
    assert caught.value.path == tmp_path / name


def test_classes_of_other_libraries_are_code(tmp_path: Path) -> None:
    index: dict[str, object] = {
        "_class_name": "UAEPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "conditioner": ["verl_uae.families.sd3", "Projector"],
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


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


def raw(path: Path, header: str, body: bytes = b"") -> Path:
    """A file with this header, its length as it is."""
    encoded = header.encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)
    return path


def test_a_sound_header_gives_names_and_shapes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert check_safetensors(tmp_path / "x.safetensors") == {"a.weight": (2, 3), "a.bias": (2,)}


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
UNSOUND = {
    "name twice": (f'{{"a":{ENTRY % (0, 4)},"a":{ENTRY % (0, 4)}}}', 4),
    "key twice": ('{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4]}}', 4),
    "hole": (f'{{"a":{ENTRY % (0, 4)},"b":{ENTRY % (8, 12)}}}', 12),
    "overlap": (f'{{"a":{ENTRY % (0, 4)},"b":{ENTRY % (2, 6)}}}', 6),
    "beyond the file": (f'{{"a":{ENTRY % (0, 4)}}}', 3),
    "bytes left over": (f'{{"a":{ENTRY % (0, 4)}}}', 5),
    "length of another shape": ('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}', 4),
    "unknown dtype": ('{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}', 4),
    "not JSON": ("{'a': 1}", 0),
    "a list": ("[1, 2]", 0),
    "too deep": ("[" * 200_000, 0),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_header_is_refused(tmp_path: Path, what: str) -> None:
    header, size = UNSOUND[what]
    with pytest.raises(CheckpointError, match="not a sound safetensors file") as caught:
        check_safetensors(raw(tmp_path / "x.safetensors", header, bytes(size)))
    assert caught.value.path.name == "x.safetensors"


@pytest.mark.parametrize("content", [b"", b"\x01", bytes(8), b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}"])
def test_a_wrong_length_of_the_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a sound"):
        check_safetensors(tmp_path / "x.safetensors")


def test_pickles_are_found_below_and_hidden_files_are_not_looked_at(tmp_path: Path) -> None:
    for number, ending in enumerate(PICKLES):
        (tmp_path / f"part{number}").mkdir()
        (tmp_path / f"part{number}" / f"weights{ending.upper() if number % 2 else ending}").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.pt").touch()
    (tmp_path / "config.json").touch()
    assert len(pickles(tmp_path)) == len(PICKLES) == 6
    assert len(files_below(tmp_path)) == 7


def test_weights_are_the_single_file_or_the_files_of_the_index(tmp_path: Path) -> None:
    save_file({"b": torch.zeros(1)}, tmp_path / "model-2.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.ones(1)}, tmp_path / "model.fp16.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert [path.name for path in weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    assert dict(read_tensors(tmp_path)) == {"a": torch.ones(1), "b": torch.zeros(1)}
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "not an index"),
        ("[]", "not an index"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "not a safetensors file beside it"),
        ('{"weight_map": {"a": 1}}', "not a safetensors file beside it"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "the key 'a' is there twice"),
        ('{"weight_map": {"a": "x.bin"}}', "not a safetensors file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: missing"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=error):
        weight_files(tmp_path)


def test_a_folder_with_pickles_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"pickles are refused: pytorch_model\.bin"):
        weight_files(tmp_path)


def test_tensors_are_compared_bit_for_bit(tmp_path: Path) -> None:
    nan = torch.tensor([float("nan"), 0.0])
    same_tensors({"a": nan, "t": torch.eye(3).T}, {"a": nan.clone(), "t": torch.eye(3)}, tmp_path)
    for other in (torch.tensor([float("nan"), -0.0]), nan.double(), nan[None], None):
        found = {} if other is None else {"a": other}
        with pytest.raises(CheckpointError, match=r"1 tensors came back other than written: \['a'\]"):
            same_tensors(found, {"a": nan}, tmp_path)
