# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bench import reference
from tests.chain.conftest import picture
from verl_uae.bench.backbones import PROTOCOL, Backbone, ImageEncoder, choose
from verl_uae.errors import CheckpointError, ConfigError


def test_the_four_of_the_paper() -> None:
    found = {name: (entry.source, entry.feature) for name, entry in PROTOCOL.items()}
    assert found == {
        "clip": ("openai/clip-vit-large-patch14", "image embedding"),
        "longclip": (None, "image embedding"),
        "dinov2": ("facebook/dinov2-large", "class token"),
        "dinov3": ("facebook/dinov3-vitl16-pretrain-lvd1689m", "class token"),
    }


def test_choosing(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()
    found = choose(
        [f"longclip={tmp_path / 'a@b'}", "clip=owner/name@0123abc", "dinov2=owner/other"], ["dinov2", "clip"]
    )
    assert [(entry.name, entry.source, entry.revision) for entry in found] == [
        ("clip", "owner/name", "0123abc"),
        ("dinov2", "owner/other", None),
    ]
    (longclip,) = choose([f"longclip={tmp_path / 'a@b'}"], ["longclip"])
    assert (longclip.source, longclip.revision) == (str(tmp_path / "a@b"), None)
    assert [entry.name for entry in choose()] == list(PROTOCOL)
    for words, only, key in ((["clip"], None, "--backbone"), (["x=y"], None, "--backbone"), ([], ["x"], "--only")):
        with pytest.raises(ConfigError, match=key):
            choose(words, only)


@pytest.mark.parametrize("name", list(PROTOCOL))
def test_features_are_those_of_the_published_preprocessing_and_model(
    name: str, backbones: list[Backbone], backbone_folders: dict[str, Path]
) -> None:
    """Against Pillow, NumPy and the model's parts, on a portrait, a landscape and a smaller picture."""
    encoder = ImageEncoder(next(entry for entry in backbones if entry.name == name))
    images = [picture(0, 40, 57), picture(1, 90, 64), picture(2, 20, 20)]
    found_BD = encoder.encode(images)
    assert found_BD.dtype == torch.float32 and len(found_BD) == 3
    # torchvision resizes floats and Pillow bytes, so DINOv3's input differs by the rounding.
    tolerance = 2e-2 if name == "dinov3" else 1e-4
    for image, vector in zip(images, found_BD.double().numpy(), strict=True):
        expected = reference.feature(name, backbone_folders[name], image)
        assert np.linalg.norm(vector - expected) < tolerance * np.linalg.norm(expected)
    spread = torch.cdist(found_BD, found_BD) / found_BD.norm(dim=1).mean()
    assert spread[0, 1] > 2 * tolerance, "the pictures are too alike to test anything"
    described = encoder.describe()
    assert described["source"] == str(backbone_folders[name]) and described["feature"] == PROTOCOL[name].feature
    assert str(described["processor"]).endswith("Pil") == (name != "dinov3")


def test_a_backbone_without_checkpoint_is_named() -> None:
    with pytest.raises(CheckpointError, match="pass --backbone longclip=FOLDER"):
        ImageEncoder(PROTOCOL["longclip"])


def _refused(name: str, folder: Path) -> str:
    (backbone,) = choose([f"{name}={folder}"], [name])
    with pytest.raises(CheckpointError) as caught:
        ImageEncoder(backbone)
    return str(caught.value)


def test_what_does_not_load_is_refused_with_the_reason(backbone_folders: dict[str, Path], tmp_path: Path) -> None:
    assert "'dinov2' checkpoint; dinov3 is 'dinov3_vit'" in _refused("dinov3", backbone_folders["dinov2"])
    with pytest.raises(ConfigError, match="none: there is no such folder"):
        choose([f"clip={tmp_path / 'none'}"], ["clip"])
    broken = tmp_path / "broken"
    shutil.copytree(backbone_folders["dinov2"], broken)
    (broken / "preprocessor_config.json").unlink()
    assert "does not load" in _refused("dinov2", broken)
    shutil.copy(backbone_folders["dinov2"] / "preprocessor_config.json", broken)
    weights = load_file(broken / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "layernorm.weight"}, broken / "model.safetensors")
    assert "is not a whole Dinov2Model: it lacks layernorm.weight" in _refused("dinov2", broken)


def test_damaged_files_are_refused_whatever_their_parsers_raise(
    backbone_folders: dict[str, Path], tmp_path: Path
) -> None:
    """A download that was cut short, an entry of another type, one of another shape, a file of another kind."""
    for index, (name, damage) in enumerate((
        ("model.safetensors", lambda whole: whole[: len(whole) // 2]),
        ("config.json", lambda whole: whole.replace(b'"num_attention_heads": 2', b'"num_attention_heads": "x"')),
        ("config.json", lambda whole: whole.replace(b'"hidden_size": 16', b'"hidden_size": 32')),
        ("config.json", lambda whole: b"[]"),
    )):  # fmt: skip
        folder = tmp_path / str(index)
        shutil.copytree(backbone_folders["dinov2"], folder)
        whole = (folder / name).read_bytes()
        assert damage(whole) != whole
        (folder / name).write_bytes(damage(whole))
        refusal = _refused("dinov2", folder)
        assert str(folder) in refusal and "\n" not in refusal


def test_a_pickle_is_not_read(backbone_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(backbone_folders["dinov2"], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "pickles are refused: pytorch_model.bin" in _refused("dinov2", folder)


def test_code_of_the_repository_is_not_run(backbone_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "code"
    shutil.copytree(backbone_folders["dinov2"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    assert "needs Python code of its own" in _refused("dinov2", folder)
    assert not (tmp_path / "ran").exists()
