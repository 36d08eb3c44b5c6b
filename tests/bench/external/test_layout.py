# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bench.external.conftest import GENEVAL
from tests.pipeline.conftest import picture
from verl_uae.bench.external.layout import DRAWN_PROMPT, LAYOUTS, grid
from verl_uae.bench.external.prompts import read_prompts
from verl_uae.errors import ConfigError


def test_names_are_those_the_scorers_look_for(geneval_file: Path, genevalpp_file: Path, dpg_folder: Path) -> None:
    """The patterns are those of evaluate_images.py and Eval-gpt-4.1-geneval++.py, and the name of the prompt."""
    (one, *_) = read_prompts("geneval", geneval_file).prompts
    names = [picture.file for picture in LAYOUTS["geneval"].pictures(one, 4)]
    assert names == [f"00000/samples/000{n}.png" for n in range(4)]
    assert all(name.split("/")[0].isdigit() and re.match(r"\d+\.png", name.split("/")[-1]) for name in names)
    (_, two, _) = read_prompts("genevalpp", genevalpp_file).prompts
    assert [picture.file for picture in LAYOUTS["genevalpp"].pictures(two, 1)] == ["2.jpg"]
    (ten, *_) = read_prompts("dpg", dpg_folder).prompts
    (sheet,) = LAYOUTS["dpg"].pictures(ten, 4)
    assert sheet.file == "10.png" and sheet.samples == (0, 1, 2, 3)
    for layout, name in (("geneval", names[0]), ("genevalpp", "2.jpg"), ("dpg", "10.png")):
        assert re.fullmatch(LAYOUTS[layout].owned, name)


def test_metadata_is_the_line_of_the_file_and_has_the_drawn_text(geneval_file: Path, rewritten_file: Path) -> None:
    layout = LAYOUTS["geneval"]
    (original, *_) = read_prompts("geneval", geneval_file).prompts
    line = geneval_file.read_text().split("\n")[0]
    assert layout.texts(original) == {"00000/metadata.jsonl": line}
    (rewritten, *_) = read_prompts("geneval", geneval_file, rewritten_file).prompts
    (text,) = layout.texts(rewritten).values()
    assert json.loads(text) == GENEVAL[0] | {DRAWN_PROMPT: "A wooden bench on grass."}


def test_samples_lie_in_the_grid_where_the_scorer_crops_them() -> None:
    """The crops of compute_dpg_bench.py for a resolution of 32."""
    images = [picture(n) for n in range(4)]
    crops = [(0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64)]
    sheet = grid(images)
    assert sheet.size == (64, 64)
    for image, crop in zip(images, crops, strict=True):
        assert np.array_equal(np.asarray(sheet.crop(crop)), np.asarray(image))
    assert grid(images[:3]).size == (64, 64) and grid(images[:2]).size == (64, 32)


def test_png_is_exact_and_jpeg_nearly() -> None:
    image = picture(3)
    exact = Image.open(io.BytesIO(LAYOUTS["geneval"].encode([image])))
    assert exact.format == "PNG" and np.array_equal(np.asarray(exact), np.asarray(image))
    near = Image.open(io.BytesIO(LAYOUTS["genevalpp"].encode([image])))
    assert near.format == "JPEG"
    assert np.abs(np.asarray(near, dtype=float) - np.asarray(image, dtype=float)).mean() < 3


def test_what_a_scorer_cannot_read_is_refused() -> None:
    assert LAYOUTS["geneval"].check_samples(9) == 9
    for bench, samples in (("geneval", 0), ("genevalpp", 2), ("dpg", 5)):
        with pytest.raises(ConfigError, match=rf"--samples.*for {bench}, got {samples}"):
            LAYOUTS[bench].check_samples(samples)
