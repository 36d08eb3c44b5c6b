# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.external.conftest import DPG, GENEVAL, REWRITTEN
from verl_uae.bench.draw import DrawSettings
from verl_uae.bench.external.draw import draw_prompts
from verl_uae.bench.external.expected import expected_of_drawn, expected_of_source
from verl_uae.bench.external.prompts import read_prompts
from verl_uae.errors import ConfigError, DataError
from verl_uae.pipeline import UAEPipeline


def test_a_drawn_folder_knows_what_its_files_say(
    pipe: UAEPipeline, model_folder: Path, geneval_file: Path, rewritten_file: Path, tmp_path: Path
) -> None:
    prompts = read_prompts("geneval", geneval_file, rewritten_file)
    settings = DrawSettings(model=str(model_folder))
    pipe.register_to_config(num_inference_steps=1, guidance_scale=1.0)
    draw_prompts(pipe, prompts, tmp_path / "out", settings, samples=2)
    drawn = expected_of_drawn("geneval", tmp_path / "out")
    source = expected_of_source("geneval", geneval_file, samples=2, rewritten=rewritten_file)
    assert drawn.prompts == source.prompts and list(drawn.prompts) == ["00000", "00001", "00002"]
    assert (drawn.samples, drawn.prompt_set) == (source.samples, source.prompt_set) == (2, "rewritten")
    assert drawn.source | {"drawing": None} == source.source and drawn.source["drawing"]["num_inference_steps"] == 1
    assert [prompt.drawn for prompt in drawn.prompts.values()] == REWRITTEN
    with pytest.raises(ConfigError, match="has the pictures of geneval, not of dpg"):
        expected_of_drawn("dpg", tmp_path / "out")
    path = tmp_path / "out" / "prompts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="has 2 prompts, the manifest 3"):
        expected_of_drawn("geneval", tmp_path / "out")
    path.write_text(json.dumps({"key": "00000"}))
    with pytest.raises(DataError, match="is not what was written"):
        expected_of_drawn("geneval", tmp_path / "out")


def test_pictures_of_another_program(
    geneval_file: Path, rewritten_file: Path, dpg_folder: Path, tmp_path: Path
) -> None:
    assert expected_of_source("dpg", dpg_folder).samples == 4
    assert {key: prompt.text for key, prompt in expected_of_source("dpg", dpg_folder).prompts.items()} == DPG
    named = expected_of_source("geneval", geneval_file, prompt_set="rewritten")
    assert named.prompt_set == "rewritten" and named.source["rewritten"] is None
    assert [prompt.tag for prompt in named.prompts.values()] == [line["tag"] for line in GENEVAL]
    for options in ({"prompt_set": "long"}, {"prompt_set": "original", "rewritten": rewritten_file}):
        with pytest.raises(ConfigError, match="--prompt-set"):
            expected_of_source("geneval", geneval_file, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be read"):
        expected_of_drawn("geneval", tmp_path)
