# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import importlib

import pytest

from tests.source import ROOT
from verl_uae.bench.lmms import plugin

GROUP = '[project.entry-points."lmms_eval.models"]'


def entry_point() -> tuple[str, str]:
    """Name and target in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name, _, target = text.partition(f"{GROUP}\n")[2].split("\n")[0].partition(" = ")
    return name, ast.literal_eval(target)


def test_the_entry_point_is_the_manifest() -> None:
    name, target = entry_point()
    module, _, function = target.partition(":")
    assert name == plugin.MODEL and getattr(importlib.import_module(module), function) is plugin.manifest


def test_the_manifest_names_a_chat_model() -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not a dependency: docs/other_benches.md")
    found = plugin.manifest()
    assert (found.model_id, found.simple_class_path) == ("uae", None)
    assert found.chat_class_path == "verl_uae.bench.lmms.model.UAECaptioner"
