# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

from tests.source import ROOT
from verl_uae.bench import lmms
from verl_uae.bench.lmms import MODEL, manifest
from verl_uae.errors import CheckpointError


def test_the_captioner_is_part_of_a_model_folder_or_one_by_itself(model_folder: Path, captioner_folder: Path) -> None:
    assert lmms.captioner_folder(model_folder) == model_folder / "captioner"
    assert lmms.captioner_folder(captioner_folder) == captioner_folder
    assert lmms.captioner_folder(Path("Qwen/Qwen2.5-VL-3B-Instruct")) == Path("Qwen/Qwen2.5-VL-3B-Instruct")


def test_what_is_no_captioner_is_named(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no captioner: .*decoder/captioner/config\.json does not exist"):
        lmms.captioner_folder(tiny_models / "decoder")
    (tmp_path / "old" / "encoder").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="is called captioner/ now"):
        lmms.captioner_folder(tmp_path / "old")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(CheckpointError, match="is a 'qwen2_vl', which is no captioner here"):
        lmms.captioner_folder(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            lmms.captioner_folder(tmp_path)


GROUP = '[project.entry-points."lmms_eval.models"]'


def entry_point() -> tuple[str, str]:
    """Name and target in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name, _, target = text.partition(f"{GROUP}\n")[2].split("\n")[0].partition(" = ")
    return name, ast.literal_eval(target)


def test_the_entry_point_is_the_manifest() -> None:
    name, target = entry_point()
    module, _, function = target.partition(":")
    assert name == MODEL and getattr(importlib.import_module(module), function) is manifest


def test_the_manifest_names_a_chat_model() -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not a dependency: docs/other_benches.md")
    found = manifest()
    assert (found.model_id, found.simple_class_path) == ("uae", None)
    assert found.chat_class_path == "verl_uae.bench.lmms.model.UAECaptioner"
