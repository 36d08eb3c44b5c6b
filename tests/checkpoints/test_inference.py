# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_uae.checkpoints.inference import (
    ENTRIES,
    InferenceSettings,
    read_index,
    read_run_settings,
    settings_of_run,
    write_index,
    write_run_settings,
)
from verl_uae.checkpoints.names import MODEL_INDEX, RUN_INFERENCE
from verl_uae.data.schema import CaptionPrompt
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families.sd3 import SD3

ALL = dataclasses.asdict(
    InferenceSettings(
        condition_length=20,
        condition_role="user",
        caption_prompt="<image>was ist das?",
        caption_system="",
        max_new_tokens=24,
        temperature=0.5,
        num_inference_steps=6,
        guidance_scale=1.0,
        negative_prompt="",
        height=32,
        width=48,
    )
)
FAMILY = SD3({}, {})
RUN = {
    "data": {"max_response_length": 24},
    "actor_rollout_ref": {"rollout": {"val_kwargs": {"do_sample": True, "temperature": 0.7}}},
    "uae": {
        "stage": "g4u",
        "conditioner": {"length": 20, "role": "generate"},
        "decoder": {"num_steps": 6, "guidance": 1.0, "negative_prompt": "ugly", "height": 32, "width": 48},
        "u4g": {"captions": {"source": "captioner", "do_sample": True, "temperature": 0.3}},
    },
}


def of_run(**changes: Any) -> dict[str, Any]:
    config = OmegaConf.create(RUN)
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return settings_of_run(lambda key: OmegaConf.select(config, key), CaptionPrompt("<image>a", "", 1, 1))


def test_no_entry_is_left_at_its_default() -> None:
    """Else the tests below could not tell an entry that is lost from one that is kept."""
    assert all(ALL[name] != value for name, value in dataclasses.asdict(InferenceSettings()).items())


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda folder, entries: write_index(folder, FAMILY, entries), read_index),
        (write_run_settings, read_run_settings),
    ],
    ids=["model", "step"],
)
def test_what_is_written_is_read(tmp_path: Path, write: Callable, read: Callable) -> None:
    write(tmp_path, ALL)
    assert read(tmp_path) == ALL
    some = {name: ALL[name] for name in ("condition_length", "caption_prompt")}
    write(tmp_path, some)
    assert read(tmp_path) == some


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert read_index(tmp_path) == {} and read_run_settings(tmp_path) is None


@pytest.mark.parametrize("file", [MODEL_INDEX, RUN_INFERENCE])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("condition_length", 0),
        ("condition_length", 20.0),
        ("condition_length", True),
        ("condition_length", "20"),
        ("condition_length", None),
        ("condition_role", ""),
        ("caption_prompt", None),
        ("caption_prompt", "<image> and <image>"),
        ("caption_prompt", ["<image>describe"]),
        ("caption_prompt", "<image><|image_pad|>"),
        ("caption_system", "<|vision_start|>"),
        ("negative_prompt", "cut \ud83d"),
        ("guidance_scale", 10**400),
        ("caption_system", 3),
        ("max_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "warm"),
        ("num_inference_steps", 0),
        ("num_inference_steps", 10_001),
        ("guidance_scale", 0.5),
        ("guidance_scale", math.inf),
        ("negative_prompt", None),
        ("height", 0),
        ("width", 32.5),
        ("caption_promt", "<image>describe"),
        ("shape", 3),
    ],
)
def test_damaged_and_unknown_entries_are_refused_by_name(tmp_path: Path, file: str, name: str, value: Any) -> None:
    write_index(tmp_path, FAMILY, ALL)
    write_run_settings(tmp_path, ALL)
    content = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**content, name: value}))
    with pytest.raises(CheckpointError, match=f"{name}: ") as caught:
        read_index(tmp_path)
        read_run_settings(tmp_path)
    assert caught.value.path == tmp_path / file
    with pytest.raises(ConfigError, match=f"^{name}: "):
        write_index(tmp_path, FAMILY, {**ALL, name: value})
    if name in ENTRIES:
        with pytest.raises(ConfigError, match=f"^{name}: "):
            InferenceSettings(**{**ALL, name: value})


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MODEL_INDEX).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_index(tmp_path)
    assert caught.value.path == tmp_path / MODEL_INDEX


def test_a_run_captions_and_draws_as_its_validation() -> None:
    assert of_run() == {
        "condition_length": 20,
        "condition_role": "generate",
        "max_new_tokens": 24,
        "temperature": 0.7,
        "num_inference_steps": 6,
        "guidance_scale": 1.0,
        "negative_prompt": "ugly",
        "height": 32,
        "width": 48,
        "caption_prompt": "<image>a",
        "caption_system": "",
    }
    assert settings_of_run(lambda key: None, None) == {}


@pytest.mark.parametrize(
    ("changes", "temperature"),
    [
        ({}, 0.7),
        # verl's agent loops read the temperature alone.
        ({"actor_rollout_ref__rollout__val_kwargs__do_sample": False}, 0.7),
        ({"actor_rollout_ref__rollout__val_kwargs__temperature": 0}, 0.0),
        ({"uae__stage": "unified"}, 0.7),
        ({"uae__stage": "u4g"}, 0.3),
        ({"uae__stage": "u4g", "uae__u4g__captions__do_sample": False}, 0.0),
        ({"uae__stage": "u4g", "uae__u4g__captions__source": "column"}, 0.0),
        ({"uae__stage": "pretrain"}, 0.0),
        ({"uae__stage": "cold_start"}, 0.0),
    ],
)
def test_the_temperature_is_that_of_what_writes_the_captions_of_validation(
    changes: dict[str, Any], temperature: float
) -> None:
    assert of_run(**changes)["temperature"] == temperature
