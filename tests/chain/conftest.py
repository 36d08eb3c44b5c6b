# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from verl_uae import UAEPipeline
from verl_uae.scenes.render import render_float, sample_scene

SETTINGS = {"condition_length": 20, "caption_prompt": "<image>describe", "caption_system": ""}


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    pixels = render_float([sample_scene(random.Random(seed))])[0].permute(1, 2, 0)
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).resize((width, height))


@pytest.fixture(scope="session")
def model_folder(tiny_models: Path, captioner_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model folder as it is exported: decoder part, captioner/ beside it, settings in the index."""
    root = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny_models / "decoder", root)
    shutil.copytree(captioner_folder, root / "captioner")
    return root


@pytest.fixture
def make_pipe(model_folder: Path) -> Callable[..., UAEPipeline]:
    def make(source: str | Path = model_folder, **changes: Any) -> UAEPipeline:
        pipe = UAEPipeline.from_pretrained(source, **{**SETTINGS, **changes})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def pipe(make_pipe: Callable[..., UAEPipeline]) -> UAEPipeline:
    return make_pipe()
