# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/own_pictures.md, as they stand there, from photographs to the benchmark of a trained model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from verl_uae.seeding import generator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_pictures.md"

#: Options of a command that are words of the user's, and keys.
MOST_WORDS = 5


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def _photographs(folder: Path, count: int) -> None:
    """Parts of the photographs that come with scikit-image, each of its own place and size."""
    data = pytest.importorskip("skimage.data")
    folder.mkdir()
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    whole = [Image.open(Path(data.__file__).parent / name).convert("RGB") for name in names]
    random = generator(0, "photographs")
    draw = lambda most: int(torch.randint(most, (), generator=random))  # noqa: E731
    for number in range(count):
        picture = whole[number % len(whole)]
        width, height = (64 + draw(side // 2 - 64) for side in picture.size)
        left, top = draw(picture.width - width), draw(picture.height - height)
        picture.crop((left, top, left + width, top + height)).save(folder / f"{number:03d}.jpg", quality=92)


@pytest.mark.slow
def test_the_page_is_run_as_it_stands(tmp_path: Path) -> None:
    _photographs(tmp_path / "PICTURES", 200)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "BACKBONE")
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path / "BACKBONE"
    )
    commands = _commands()
    assert len(commands) == 10
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        words = shlex.split(command)
        given = [word for word in words[2:] if word.startswith("--") or "=" in word]
        assert words[0] == "verl-uae" and len(given) <= MOST_WORDS, command
        if words[1] == "train":
            # Another Ray may run on the machine that tests, and it may have GPUs.
            words += ["++ray_kwargs.ray_init.address=local", "--gpus", "0"]
        result = subprocess.run(
            [sys.executable, "-m", "verl_uae.cli", *words[1:]],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=500,
        )
        # The benchmark has one encoder of four.
        wanted = 1 if words[1] == "bench" else 0
        assert result.returncode == wanted, f"{command}\n{result.stdout[-3000:]}"
    report = json.loads((tmp_path / "DATA" / "report.json").read_text())
    assert report["train"] + report["val"] == 200
    result = json.loads((tmp_path / "BENCH" / "result.json").read_text())
    assert len(result["similarities_by_model"]["dinov2"]) == 200
