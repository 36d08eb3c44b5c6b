# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Features and scores written down a second time: Pillow and NumPy for the pixels, other entry points of the models."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, CLIPModel, CLIPVisionModelWithProjection

from tests.bench.conftest import SIDE

CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pixels(name: str, image: Image.Image) -> np.ndarray:
    """Network input (1, 3, SIDE, SIDE) as the published preprocessing has it."""
    mean, std = IMAGENET_STATISTICS if name.startswith("dino") else CLIP_STATISTICS
    if name == "dinov3":
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    else:
        shorter = SIDE + 4 if name == "dinov2" else SIDE
        width, height = image.size
        size = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
        image = image.crop((left, top, left + SIDE, top + SIDE))
    values = np.asarray(image, dtype=np.float64) / 255.0
    return ((values - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)


@functools.cache
def network(name: str, folder: Path) -> torch.nn.Module:
    kinds = {"clip": CLIPModel, "longclip": CLIPVisionModelWithProjection}
    return kinds.get(name, AutoModel).from_pretrained(folder).eval()


@torch.no_grad()
def feature(name: str, folder: Path, image: Image.Image) -> np.ndarray:
    """Feature vector of one picture, float64."""
    x, model = torch.from_numpy(pixels(name, image)), network(name, folder)
    if name in ("clip", "longclip"):
        tower = model.vision_model
        hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(tower.embeddings(x))).last_hidden_state
        found = model.visual_projection(tower.post_layernorm(hidden[:, 0]))
    else:
        found = model(pixel_values=x).pooler_output
    return found[0].double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
