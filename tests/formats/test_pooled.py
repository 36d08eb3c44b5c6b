# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from verl_uae.checkpoints.pooled import empty_prompt_pooled
from verl_uae.errors import CheckpointError


def by_diffusers(sd3: Path, prompt: str) -> Tensor:
    """Pooled prompt embedding of the stock pipeline, loaded from the folder."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3, text_encoder_3=None, tokenizer_3=None)
    with torch.no_grad():
        _, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
    return pooled[0]


def test_it_is_what_the_stock_pipeline_computes(sd3: Path) -> None:
    pooled = empty_prompt_pooled(sd3)
    assert pooled.shape == (16,) and pooled.dtype == torch.float32
    assert torch.equal(pooled, by_diffusers(sd3, ""))
    assert (pooled - by_diffusers(sd3, "abc")).abs().max() > 0.1
    assert pooled[:6].abs().min() > 0 and pooled[6:].abs().min() > 0


def test_it_is_computed_in_fp32_whatever_is_stored(sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(sd3, tmp_path / "half")
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3, text_encoder_3=None, tokenizer_3=None)
    for name in ("text_encoder", "text_encoder_2"):
        getattr(pipeline, name).half().save_pretrained(tmp_path / "half" / name)
    pooled = empty_prompt_pooled(tmp_path / "half")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, empty_prompt_pooled(sd3), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"])
def test_a_missing_part_is_named(sd3: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(sd3, tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3" / name)
    with pytest.raises(CheckpointError, match="missing") as caught:
        empty_prompt_pooled(tmp_path / "sd3")
    assert caught.value.path.name == name


def test_pickled_weights_are_refused(sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(sd3, tmp_path / "sd3")
    weights = tmp_path / "sd3" / "text_encoder_2" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"text_encoder_2: has no .*pickles are refused: pytorch_model\.bin"):
        empty_prompt_pooled(tmp_path / "sd3")
