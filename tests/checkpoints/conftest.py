# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Folders that other projects would hand over, of tiny random models of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from tests.launch import launch
from verl_uae.checkpoints.assemble import ModelParts, publish_model, save_component
from verl_uae.checkpoints.imports import Sd3Import, import_sd3
from verl_uae.checkpoints.manifest import Card
from verl_uae.compat import ensure_torchvision
from verl_uae.families.sd3 import Projector

CARD = Card("A model", "Made by a test.", {"all": "nothing"})


def build_clip(projection: int, seed: int, pad: str) -> tuple[Any, Any]:
    """Tokenizer and text encoder of a CLIP whose last layer is not zero."""
    ensure_torchvision()
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    words = ["!", *"abcdefghij", *(f"{letter}</w>" for letter in "abcdefghij"), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12, pad_token=pad)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary[pad],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPTextModelWithProjection(config)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return tokenizer, encoder.eval()


@pytest.fixture(scope="session")
def sd3(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 folder as diffusers saves it, with the tiny decoder's transformer and both CLIPs, without T5."""
    source = tiny_models / "decoder"
    tokenizer, encoder = build_clip(6, 1, "<|endoftext|>")
    tokenizer_2, encoder_2 = build_clip(10, 2, "!")
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(source, subfolder="transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL.from_pretrained(source, subfolder="vae"),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    folder = tmp_path_factory.mktemp("sd3") / "model"
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def model_folder(sd3: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder imported from the SD3 folder and the tiny captioner."""
    out = tmp_path_factory.mktemp("imported") / "model"
    import_sd3(Sd3Import(str(sd3), str(tiny_models / "captioner"), hidden_dim=24, condition_length=20), out)
    return out


def smallest_parts() -> ModelParts:
    """A decoder of some ten thousand numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=1,
            attention_head_dim=8,
            joint_attention_dim=8,
            caption_projection_dim=8,
            pooled_projection_dim=4,
            pos_embed_max_size=4,
        )
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=4, layers_per_block=1)
        projector = Projector(8, 8, 8, 4)

    def write(folder: Path) -> None:
        for name, part in (("transformer", transformer), ("vae", vae), ("conditioner", projector)):
            save_component(part, folder / name)
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")

    return ModelParts(decoder=write, card=CARD, entries={"condition_length": 16})


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """A published model folder with the smallest decoder and no captioner."""
    publish_model(smallest_parts(), tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture(scope="session")
def shards(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests.checkpoints.shard_probe wrote on two ranks: shards by kind, and what the engine exported."""
    root = tmp_path_factory.mktemp("shards")
    launch("tests.checkpoints.shard_probe", tiny_models / "decoder", root, two=2)
    return root / "two"
