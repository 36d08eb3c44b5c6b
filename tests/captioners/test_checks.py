# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What is said of a captioner before a run starts: whether it may caption, and how long its prompts are."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.captioners import tiny
from verl_uae.chain.captioner import caption_messages
from verl_uae.checkpoints.load import load_processor
from verl_uae.config.path_keys import validate_models
from verl_uae.data.dataset import UAEDataset
from verl_uae.data.schema import make_prompt, make_row, write_parquet
from verl_uae.engines.captioner import check_source
from verl_uae.errors import ConfigError
from verl_uae.stages.common.captions import PromptSettings, PromptTokens

SIZES = [(32, 32), (100, 30), (30, 100), (64, 64)]


@pytest.fixture(scope="module", params=tiny.NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(str(request.param), tmp_path_factory.mktemp("models") / str(request.param))


def config_of(compose: Callable[..., Any], models: Path, stage: str, captioner: Path) -> Any:
    preset = {"cold_start": "scenes_cold_start", "pretrain": "scenes_pretrain"}.get(stage, "scenes")
    paths = (f"uae_home={models}", f"actor_rollout_ref.model.path={captioner}", f"uae.conditioner.path={captioner}")
    return compose("hardware=cpu", f"preset={preset}", *paths, name=f"uae_{stage}")


@pytest.mark.parametrize("stage", ["pretrain", "cold_start", "g4u", "u4g", "unified"])
def test_every_family_passes_where_it_is_served(
    compose: Callable[..., Any], tiny_models: Path, folder: Path, stage: str
) -> None:
    validate_models(config_of(compose, tiny_models, stage, folder))
    # A model of the hub is looked at where the engine fetches it.
    check_source(str(folder), code=False)


def test_a_model_of_no_family_writes_no_captions(
    compose: Callable[..., Any], tiny_models: Path, tmp_path: Path
) -> None:
    """Pre-training reads it as a text encoder and asks it for nothing."""
    other = Path(shutil.copytree(tiny_models / "captioner", tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    processor = load_processor(other)
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {"hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"text_config": {"model_type": "llama", **text, "vocab_size": config["text_config"]["vocab_size"]}}
    model = LlavaForConditionalGeneration(
        LlavaConfig(**sizes, vision_config={"model_type": "clip_vision_model", **vision, "image_size": 32})
    )
    shutil.rmtree(other)
    model.save_pretrained(other)
    processor.save_pretrained(other)
    validate_models(config_of(compose, tiny_models, "pretrain", other))
    with pytest.raises(ConfigError, match=r"is a 'llava', which is no captioner here: use one of Qwen2\.5-VL"):
        validate_models(config_of(compose, tiny_models, "u4g", other))


def test_prompts_are_as_long_as_the_data_set_says(folder: Path, tmp_path: Path) -> None:
    """The longest allowed prompt is the longest that captioning builds, and one token less leaves a row out."""
    processor = load_processor(folder)
    tokens = PromptTokens(processor, json.loads((folder / "config.json").read_text())["model_type"], PromptSettings())
    rows, lengths = [], []
    for index, size in enumerate(SIZES):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.save(file, "png")
        prompt = make_prompt("<image>describe", None)
        rows.append(make_row(file.getvalue(), index=index, split="train", sha256="", prompt=prompt, size=size))
        lengths.append(len(tokens(caption_messages(image, "<image>describe", None))[0]))
    write_parquet(tmp_path / "rows.parquet", rows)
    assert len(set(lengths)) > 1
    for limit in (max(lengths), max(lengths) - 1, min(lengths)):
        settings = {"max_prompt_length": limit, "filter_overlong_prompts": True, "uae_max_bad_share": 1.0}
        config = OmegaConf.create(settings)
        kept = UAEDataset(str(tmp_path / "rows.parquet"), processor.tokenizer, config, processor)
        assert [row["extra_info"]["index"] for row in map(kept.__getitem__, range(len(kept)))] == [
            index for index, length in enumerate(lengths) if length <= limit
        ]
