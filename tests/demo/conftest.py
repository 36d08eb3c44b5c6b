# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from verl_uae import UAEPipeline
from verl_uae.demo.session import DemoSession


@pytest.fixture(scope="session")
def demo_pipe(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> UAEPipeline:
    root = tmp_path_factory.mktemp("demo") / "model"
    shutil.copytree(tiny_models / "decoder", root)
    shutil.copytree(tiny_models / "encoder", root / "encoder")
    settings = {"caption_prompt": "<image>describe", "caption_system": "", "max_new_tokens": 8}
    drawing = {"num_inference_steps": 3, "guidance_scale": 2.0}
    pipe = UAEPipeline.from_pretrained(root, condition_length=20, **settings, **drawing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def session(demo_pipe: UAEPipeline) -> DemoSession:
    return DemoSession(demo_pipe, ["pixel", "ssim"])
