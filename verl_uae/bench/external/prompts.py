# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What GenEval, GenEval++ and DPG-Bench ask for: their prompts, rewritten ones, and the folder each scorer reads.

Prompt files: GenEval ``prompts/evaluation_metadata.jsonl`` (https://github.com/djghosh13/geneval, commit af4902f);
GenEval++ ``test_scripts/Geneval++.jsonl`` (https://github.com/yejy53/Echo-4o, commit 28f36d7); DPG-Bench
``dpg_bench/prompts/*.txt`` (https://github.com/TencentQQGYLab/ELLA, commit 3c228f1).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from verl_uae.bench.draw import png
from verl_uae.bench.external import BENCHES, Bench
from verl_uae.bench.results import read_text
from verl_uae.errors import ConfigError, DataError

#: Sets of prompts whose scores do not compare.
ORIGINAL, REWRITTEN = "original", "rewritten"

#: What a rewriter must leave as it was, where its file has it.
_REQUIREMENTS = ("tag", "include", "exclude")


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One prompt of a benchmark."""

    key: str
    """Name within the benchmark: ``00000`` of GenEval, ``1`` of GenEval++, the stem of the file of DPG-Bench."""
    text: str
    """The benchmark's own text, which the scorer knows."""
    drawn: str
    """The text that is drawn: ``text``, or its rewritten form."""
    occurrence: int
    """How many prompts before it have the same text."""
    metadata: dict[str, Any]
    """The line of the benchmark's file; empty for DPG-Bench."""

    @property
    def tag(self) -> str | None:
        """The category; None for DPG-Bench, whose categories belong to questions."""
        return self.metadata.get("tag")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts of a benchmark, in its order."""

    bench: Bench
    prompts: tuple[BenchPrompt, ...]
    source: dict[str, str]
    """``path`` and ``sha256`` of the benchmark's file or folder."""
    rewritten: dict[str, str] | None = None
    """The same of the rewritten prompts."""

    @property
    def name(self) -> str:
        """``original`` or ``rewritten``."""
        return ORIGINAL if self.rewritten is None else REWRITTEN


def read_prompts(
    bench: Bench, source: str | os.PathLike[str], rewritten: str | os.PathLike[str] | None = None
) -> PromptSet:
    """Read the prompts of a benchmark.

    Args:
        bench: ``geneval``, ``genevalpp`` or ``dpg``.
        source: the benchmark's own file (JSON lines with ``tag`` and ``prompt``), or its folder of text files.
        rewritten: texts to draw instead: JSON lines with ``prompt``, or one text per line, in the order of ``source``;
            for DPG-Bench a folder of files with the same names.

    Raises:
        ConfigError: the benchmark is unknown, or a file or folder does not exist.
        DataError: a line is no prompt, or the rewritten prompts belong to other originals.
    """
    if bench not in BENCHES:
        raise ConfigError("bench", f"must be one of {', '.join(BENCHES)}, got {bench!r}")
    path = Path(source)
    named = _folder(path) if bench == "dpg" else _metadata(path, first=1 if bench == "genevalpp" else 0)
    if not named:
        raise DataError(path, None, "has no prompts")
    drawn = [str(line["prompt"]) for _, line in named]
    if rewritten is not None:
        drawn = _rewritten(bench, Path(rewritten), named)
    seen: Counter[str] = Counter()
    prompts = []
    for (key, line), text in zip(named, drawn, strict=True):
        original = str(line["prompt"])
        prompts.append(BenchPrompt(key, original, text, seen[original], {} if bench == "dpg" else line))
        seen[original] += 1
    return PromptSet(bench, tuple(prompts), _origin(path), None if rewritten is None else _origin(Path(rewritten)))


def _metadata(path: Path, first: int) -> list[tuple[str, dict[str, Any]]]:
    lines = _json_lines(path)
    for row, line in enumerate(lines):
        if not isinstance(line.get("tag"), str) or not line["tag"]:
            raise DataError(path, row, "has no tag")
    # GenEval counts from 00000 (generation/diffusers_generate.py), GenEval++ from 1 (Eval.md).
    return [(str(row + 1) if first else f"{row:05d}", line) for row, line in enumerate(lines)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for row, text in enumerate(_text_lines(path)):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(path, row, f"is no JSON: {error}") from error
        if not isinstance(line, dict) or not isinstance(line.get("prompt"), str) or not line["prompt"].strip():
            raise DataError(path, row, "has no prompt")
        lines.append(line)
    return lines


def _text_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ConfigError("prompts", f"{path} is not a file")
    # Lines end at a line feed alone: a prompt may hold a character that Python counts as the end of a line.
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _folder(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_dir():
        raise ConfigError("prompts", f"{path} is not a folder of text files")
    named = []
    for file in sorted(path.glob("*.txt")):
        if "." in file.stem:
            raise DataError(file, None, "the scorer takes the name up to the first point; rename it")
        text = read_text(file).strip()
        if not text:
            raise DataError(file, None, "has no prompt")
        named.append((file.stem, {"prompt": text}))
    return named


def _rewritten(bench: Bench, path: Path, named: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    if bench == "dpg":
        texts = {key: str(line["prompt"]) for key, line in _folder(path)}
        missing = [key for key, _ in named if key not in texts]
        if missing:
            raise DataError(path / f"{missing[0]}.txt", None, f"missing, and {len(missing) - 1} more")
        return [texts[key] for key, _ in named]
    lines = _json_lines(path) if path.suffix == ".jsonl" else [{"prompt": text} for text in _text_lines(path)]
    if len(lines) != len(named):
        raise DataError(path, None, f"has {len(lines)} prompts for {len(named)} originals")
    for row, (line, (_, original)) in enumerate(zip(lines, named, strict=True)):
        for name in _REQUIREMENTS:
            if name in line and line[name] != original.get(name):
                raise DataError(path, row, f"its {name} is not that of the original: another order, or another set")
    return [str(line["prompt"]) for line in lines]


def _origin(path: Path) -> dict[str, str]:
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode() if path.is_dir() else b"")
        digest.update(content)
    return {"path": str(path), "sha256": digest.hexdigest()}


#: Key that the metadata of a GenEval sample gets for a rewritten prompt; its scorer passes it on and ignores it.
DRAWN_PROMPT = "drawn_prompt"

#: JPEG of the GenEval++ pictures: nothing visible is lost, and its scorer compresses them again.
JPEG = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One file the scorer reads."""

    file: str
    """Path below the folder of pictures."""
    prompt: BenchPrompt
    samples: tuple[int, ...]
    """Numbers of the samples in it: one, or those of a grid, row by row."""


@dataclass(frozen=True, slots=True)
class ScorerLayout:
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

    def pictures(self, prompt: BenchPrompt, samples: int) -> list[PictureFile]:
        """The files of a prompt."""
        if self.bench == "geneval":
            return [PictureFile(f"{prompt.key}/samples/{n:04d}.png", prompt, (n,)) for n in range(samples)]
        ending = "jpg" if self.bench == "genevalpp" else "png"
        return [PictureFile(f"{prompt.key}.{ending}", prompt, tuple(range(samples)))]

    def texts(self, prompt: BenchPrompt) -> dict[str, str]:
        """Other files of a prompt, by path: the metadata of GenEval, with the drawn text where it is another."""
        if self.bench != "geneval":
            return {}
        drawn = {} if prompt.drawn == prompt.text else {DRAWN_PROMPT: prompt.drawn}
        return {f"{prompt.key}/metadata.jsonl": json.dumps(prompt.metadata | drawn)}

    def encode(self, images: Sequence[Image.Image]) -> bytes:
        """The file of samples: PNG, or JPEG for GenEval++."""
        image = images[0] if len(images) == 1 else grid(images)
        if self.bench != "genevalpp":
            return png(image)
        encoded = io.BytesIO()
        image.convert("RGB").save(encoded, "JPEG", **JPEG)
        return encoded.getvalue()


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in rows of two, without borders; a place that is left over is black."""
    width, height = images[0].size
    rows = (len(images) + 1) // 2
    sheet = Image.new("RGB", (2 * width, rows * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % 2 * width, index // 2 * height))
    return sheet


LAYOUTS: dict[str, ScorerLayout] = {
    layout.bench: layout
    for layout in (
        ScorerLayout(
            bench="geneval",
            samples=4,
            most_samples=None,
            owned=r"\d+/(samples/\d+\.png|metadata\.jsonl|grid\.png)",
            repository="https://github.com/djghosh13/geneval",
            commit="af4902f24d3ca90ebbb446dd9891a59e0f82725f",
            command="python evaluation/evaluate_images.py {images} --outfile results.jsonl --model-path DETECTOR",
        ),
        ScorerLayout(
            bench="genevalpp",
            samples=1,
            most_samples=1,
            owned=r"\d+\.jpg",
            repository="https://github.com/yejy53/Echo-4o",
            commit="28f36d76558e5f53b9deceda78bf025ef0d0ea24",
            command="in Eval-gpt-4.1-geneval++.py: image_dir = Path('{images}'), then run it",
        ),
        ScorerLayout(
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
