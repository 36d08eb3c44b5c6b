# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures and a tiny CLIP for the reward tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from verl_uae.reward import RewardBatch

BatchMaker = Callable[..., RewardBatch]


@pytest.fixture
def make_batch() -> BatchMaker:
    """``make_batch(count, size=16, seed=0)``: random pictures, and the same with noise as reconstructions."""

    def make(count: int, size: int | tuple[int, int] = 16, seed: int = 0) -> RewardBatch:
        generator = torch.Generator().manual_seed(seed)
        height, width = (size, size) if isinstance(size, int) else size
        source = torch.rand(count, 3, height, width, generator=generator)
        noise = torch.randn(count, 3, height, width, generator=generator)
        return RewardBatch(
            source_B3HW=source,
            reconstruction_B3HW=(source + 0.1 * noise).clamp(0.0, 1.0),
            captions=[f"caption {i}" for i in range(count)],
            rows=[{"data_source": "test", "ground_truth": i, "extra_info": {"index": i}} for i in range(count)],
        )

    return make


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP model with random weights, a 28-pixel input and 8 text positions, with processor and tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config={**tower, **text, "projection_dim": 16},
        vision_config={**tower, "image_size": 28, "patch_size": 7, "projection_dim": 16},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        # Random CLIP weights are so small that all pictures look alike; larger ones tell them apart.
        with torch.no_grad():
            for parameter in (*model.vision_model.parameters(), *model.text_model.parameters()):
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvw"
    ends = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={piece: number for number, piece in enumerate(ends)}, merges=[])
    tokenizer.save_pretrained(folder)
    return folder
