# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.devices import tell
from tests.families.tiny import BUILDERS, build, build_processor, build_qwen3_vl, build_tokenizer
from tests.real_size.conftest import one_rank  # noqa: F401

#: Of sd3, which has a projector of ours that stock pipelines lack, there are the models of the scenes.
FAMILIES = sorted(BUILDERS)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Callable[[str], Path]:
    """``tiny(family)``: a folder with ``decoder/``, ``captioner/`` and, where that is another one,
    ``language_model/``."""
    root, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = root / name
            if name == "sd3":
                shutil.copytree(tiny_models, made[name])
                return made[name]
            build(name).save(made[name])
            if not (made[name] / "captioner").is_dir():
                tokenizer = build_tokenizer()
                with torch.random.fork_rng(devices=[]):
                    build_qwen3_vl(tokenizer, 4).save_pretrained(made[name] / "captioner")
                build_processor(tokenizer).save_pretrained(made[name] / "captioner")
        return made[name]

    return folder


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Workers compute on the CPU."""
    tell(monkeypatch, "cpu")
