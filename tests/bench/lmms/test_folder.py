# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_uae.bench.lmms.folder import captioner_folder
from verl_uae.errors import CheckpointError


def test_a_model_folder_has_its_captioner_in_encoder(model_folder: Path, encoder_folder: Path) -> None:
    assert captioner_folder(model_folder) == model_folder / "encoder"
    assert captioner_folder(encoder_folder) == encoder_folder
    assert captioner_folder(Path("Qwen/Qwen2.5-VL-3B-Instruct")) == Path("Qwen/Qwen2.5-VL-3B-Instruct")


def test_what_is_no_captioner_is_named(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no captioner: .*decoder/encoder/config\.json does not exist"):
        captioner_folder(tiny_models / "decoder")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(CheckpointError, match="is a qwen2_vl, not a qwen2_5_vl"):
        captioner_folder(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            captioner_folder(tmp_path)
