# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The folder each benchmark's scorer reads: names, samples per prompt, and how samples become files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from verl_uae.bench.external.prompts import Bench, Prompt
from verl_uae.errors import ConfigError

#: Key that the metadata of a GenEval sample gets for a rewritten prompt; its scorer passes it on and ignores it.
DRAWN_PROMPT = "drawn_prompt"

#: JPEG of the GenEval++ pictures: nothing visible is lost, and its scorer compresses them again.
JPEG = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True, slots=True)
class Picture:
    """One file the scorer reads."""

    file: str
    """Path below the folder of pictures."""
    prompt: Prompt
    samples: tuple[int, ...]
    """Numbers of the samples in it: one, or those of a grid, row by row."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a benchmark wants its pictures."""

    bench: Bench
    samples: int
    """Samples per prompt that the benchmark asks for."""
    most_samples: int | None
    """Samples per prompt that its scorer can read; None is any number."""
    owned: str
    """Pattern of the files the scorer would read, in `re` syntax."""
    repository: str
    commit: str
    """Of the scorer whose format this is."""
    command: str
    """How it is run on the pictures."""

    def check_samples(self, samples: int) -> int:
        """``samples``, if the scorer can read that many.

        Raises:
            ConfigError: it cannot.
        """
        most = self.most_samples
        if samples < 1 or (most is not None and samples > most):
            allowed = "at least 1" if most is None else ("1" if most == 1 else f"1 to {most}")
            raise ConfigError("--samples", f"must be {allowed} for {self.bench}, got {samples}")
        return samples

    def pictures(self, prompt: Prompt, samples: int) -> list[Picture]:
        """The files of a prompt."""
        if self.bench == "geneval":
            return [Picture(f"{prompt.key}/samples/{n:04d}.png", prompt, (n,)) for n in range(samples)]
        ending = "jpg" if self.bench == "genevalpp" else "png"
        return [Picture(f"{prompt.key}.{ending}", prompt, tuple(range(samples)))]

    def texts(self, prompt: Prompt) -> dict[str, str]:
        """Other files of a prompt, by path: the metadata of GenEval, with the drawn text where it is another."""
        if self.bench != "geneval":
            return {}
        drawn = {} if prompt.drawn == prompt.text else {DRAWN_PROMPT: prompt.drawn}
        return {f"{prompt.key}/metadata.jsonl": json.dumps(prompt.metadata | drawn)}

    def encode(self, images: Sequence[Image.Image]) -> bytes:
        """The file of samples: PNG, or JPEG for GenEval++."""
        image = images[0] if len(images) == 1 else grid(images)
        encoded = io.BytesIO()
        if self.bench == "genevalpp":
            image.convert("RGB").save(encoded, "JPEG", **JPEG)
        else:
            image.save(encoded, "PNG")
        return encoded.getvalue()


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in rows of two, without borders; a place that is left over is black."""
    width, height = images[0].size
    rows = (len(images) + 1) // 2
    sheet = Image.new("RGB", (2 * width, rows * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % 2 * width, index // 2 * height))
    return sheet


LAYOUTS: dict[str, Layout] = {
    layout.bench: layout
    for layout in (
        Layout(
            bench="geneval",
            samples=4,
            most_samples=None,
            owned=r"\d+/(samples/\d+\.png|metadata\.jsonl|grid\.png)",
            repository="https://github.com/djghosh13/geneval",
            commit="af4902f24d3ca90ebbb446dd9891a59e0f82725f",
            command="python evaluation/evaluate_images.py {images} --outfile results.jsonl --model-path DETECTOR",
        ),
        Layout(
            bench="genevalpp",
            samples=1,
            most_samples=1,
            owned=r"\d+\.jpg",
            repository="https://github.com/yejy53/Echo-4o",
            commit="28f36d76558e5f53b9deceda78bf025ef0d0ea24",
            command="in Eval-gpt-4.1-geneval++.py: image_dir = Path('{images}'), then run it",
        ),
        Layout(
            bench="dpg",
            samples=4,
            most_samples=4,
            owned=r"[^/]+\.png",
            repository="https://github.com/TencentQQGYLab/ELLA",
            commit="3c228f1dc6c4d3cad0a47493816151a419f14db3",
            command="PYTHONHASHSEED=0 PIC_NUM={samples} bash dpg_bench/dist_eval.sh {images} {resolution}",
        ),
    )
}
