# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.reward.terms.features import load_frozen, processor_settings


def test_frozen_and_the_global_generator_left_alone(tiny_clip: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    before = torch.random.get_rng_state()
    network = load_frozen(CLIPTextModelWithProjection, str(tiny_clip), None, torch.bfloat16, "k", "CLIP")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert next(network.parameters()).dtype == torch.bfloat16


def test_another_architecture_is_refused(tiny_clip: Path) -> None:
    from transformers import Dinov2Model

    with pytest.raises(ConfigError, match=r"^k: "):
        load_frozen(Dinov2Model, str(tiny_clip), None, torch.float32, "k", "DINOv2")


def test_damaged_folders_are_refused_by_key(tiny_clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    for file, keep in (("model.safetensors", 100), ("config.json", 0)):
        folder = tmp_path / file
        shutil.copytree(tiny_clip, folder)
        (folder / file).write_bytes((folder / file).read_bytes()[:keep] or b'{"model_type": "clip", "text_config": 3}')
        with pytest.raises(ConfigError, match=r"^k: .* cannot be loaded as a CLIP model"):
            load_frozen(CLIPTextModelWithProjection, str(folder), None, torch.float32, "k", "CLIP")


def test_the_commit_of_a_hub_repository_is_logged(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import CLIPTextModelWithProjection

    commit = "0123456789" * 4
    repository = tmp_path / "models--some--clip"
    shutil.copytree(tiny_clip, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.INFO):
        load_frozen(CLIPTextModelWithProjection, "some/clip", None, torch.float32, "k", "CLIP")
        assert f"k: some/clip at commit {commit}" in caplog.text
        caplog.clear()
        load_frozen(CLIPTextModelWithProjection, "some/clip", commit, torch.float32, "k", "CLIP")
        load_frozen(CLIPTextModelWithProjection, str(tiny_clip), None, torch.float32, "k", "CLIP")
    assert "commit" not in caplog.text


def test_processor_settings(tiny_clip: Path, tmp_path: Path) -> None:
    settings = processor_settings(str(tiny_clip), None)
    assert settings is not None and settings["size"]["shortest_edge"] == 30
    assert processor_settings(str(tmp_path), None) is None
