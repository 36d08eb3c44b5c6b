# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny backbones of the real classes, saved as folders with their stock image processors, and two picture folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
)

# The fixtures of the pipeline's tests serve here too.
from tests.chain.conftest import SETTINGS, make_pipe, model_folder, picture, pipe  # noqa: F401
from verl_uae import UAEPipeline
from verl_uae.bench.backbones import Backbone, choose

SIDE = 32
WIDTH: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = {**WIDTH, "intermediate_size": 24, "image_size": SIDE, "patch_size": 8}


def build_backbones(root: Path) -> dict[str, Path]:
    """Folders by name: a whole CLIP, a CLIP image tower, a DINOv2, a DINOv3; random weights, stock processors."""
    clip_processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    # As facebook/dinov2-large has it: the shorter side a little longer than the crop.
    dinov2_processor = BitImageProcessor(
        size={"shortest_edge": SIDE + 4},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    )
    text = {**WIDTH, "intermediate_size": 24, "vocab_size": 50, "max_position_embeddings": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        models = {
            "clip": (
                CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)),
                clip_processor,
            ),
            "longclip": (
                CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=12)),
                clip_processor,
            ),
            "dinov2": (Dinov2Model(Dinov2Config(**WIDTH, image_size=SIDE, patch_size=8)), dinov2_processor),
            "dinov3": (
                DINOv3ViTModel(DINOv3ViTConfig(**VISION, num_register_tokens=2)),
                DINOv3ViTImageProcessor(size={"height": SIDE, "width": SIDE}),
            ),
        }
        for model, _ in models.values():
            for parameter in model.parameters():
                # Larger than at initialisation, so that different pictures have visibly different features.
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    for name, (model, processor) in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.fixture(scope="session")
def backbone_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def backbone_words(backbone_folders: dict[str, Path]) -> list[str]:
    """Command-line options for the folders."""
    return [word for name, path in backbone_folders.items() for word in ("--backbone", f"{name}={path}")]


@pytest.fixture
def backbones(backbone_folders: dict[str, Path]) -> list[Backbone]:
    return choose([f"{name}={path}" for name, path in backbone_folders.items()])


@pytest.fixture(scope="session")
def drawing_pipe(model_folder: Path) -> UAEPipeline:  # noqa: F811
    """A pipeline for tests that set every setting they depend on, and change nothing else."""
    pipe = UAEPipeline.from_pretrained(model_folder, **SETTINGS)  # noqa: F811
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(generated, originals): five pairs; sizes differ, and no picture equals its reconstruction."""
    generated, originals = tmp_path / "generated", tmp_path / "originals"
    generated.mkdir()
    originals.mkdir()
    for index in range(5):
        picture(index, 40 + index, 48).save(originals / f"{index}.png")
        picture(index + 20, 64, 64).save(generated / f"recon_{index}.png")
    return generated, originals


@pytest.fixture
def save() -> Callable[..., Path]:
    """``save(path, seed)``: a small picture in the format that the path's ending says."""

    def write(path: Path, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image: Image.Image = picture(seed)
        image.save(path)
        return path

    return write
