# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.base import COMPONENTS, Base, base_tensors
from verl_uae.checkpoints.names import BASE_FILE
from verl_uae.errors import CheckpointError

PARTS = tuple(COMPONENTS.values())


def test_a_base_is_its_weight_files(tiny_models: Path, tmp_path: Path) -> None:
    source = tiny_models / "decoder"
    files = sorted(path for part in PARTS for path in (source / part).glob("*.safetensors"))
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(source)}\n" for file in files)
    base = Base.of(str(source), PARTS)
    assert base == Base(str(source), hashlib.sha256(lines.encode()).hexdigest()) and len(files) == 2
    shutil.copytree(source, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("moved")
    base.check(Base.of(str(tmp_path / "moved"), PARTS), tmp_path)
    encoder = Base.of(str(tiny_models / "encoder"), (".",))
    with pytest.raises(CheckpointError, match=rf"{BASE_FILE}: trained from {source} .*not what .*encoder holds now"):
        base.check(encoder, tmp_path)


def test_it_is_written_beside_the_shards_and_read_back(tmp_path: Path) -> None:
    assert Base.read(tmp_path) is None
    Base("somewhere/else", "ab" * 32).write(tmp_path)
    assert Base.read(tmp_path) == Base("somewhere/else", "ab" * 32)


@pytest.mark.parametrize("text", ["", "[]", '{"path": "p"}', "[" * 100_000, "\x00"])
def test_a_damaged_note_is_an_error_and_not_no_note(tmp_path: Path, text: str) -> None:
    (tmp_path / BASE_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{BASE_FILE}: cannot be read"):
        Base.read(tmp_path)


def test_single_weights_are_read_as_they_are_stored(tiny_models: Path) -> None:
    source = str(tiny_models / "decoder")
    whole = Decoder.from_pretrained(source).state_dict()
    names = {"transformer.proj_out.weight", "projector.pooled"}
    found = base_tensors(source, names)
    assert set(found) == names and all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    assert set(base_tensors(source)) == {name for name in whole if not name.startswith("vae.")}
    with pytest.raises(CheckpointError, match=r"1 weights are missing: \['transformer\.nowhere\.weight'\]"):
        base_tensors(source, {"transformer.nowhere.weight"})
    with pytest.raises(CheckpointError, match="there is no such folder"):
        base_tensors("/no/such/decoder")
