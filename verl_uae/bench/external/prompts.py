# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Prompts of GenEval, GenEval++ and DPG-Bench, and rewritten ones, drawn into the folder that each scorer reads.

Prompt files: GenEval ``prompts/evaluation_metadata.jsonl`` (https://github.com/djghosh13/geneval, commit af4902f);
GenEval++ ``test_scripts/Geneval++.jsonl`` (https://github.com/yejy53/Echo-4o, commit 28f36d7); DPG-Bench
``dpg_bench/prompts/*.txt`` (https://github.com/TencentQQGYLab/ELLA, commit 3c228f1).

A drawing run can be killed and started again. A picture is kept if its prompt, every setting and the model are what
they were and the file is what was written; else it is deleted at the start, so that the folder never holds pictures of
two runs, and drawn anew. Several processes may share the work.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from verl_uae.bench.draw import DrawSettings, Painter, describe_settings, draw_one, encoded
from verl_uae.bench.external import BENCHES, Bench
from verl_uae.bench.results import read_text
from verl_uae.chain.pipeline import UAEPipeline
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import write_bytes, write_json, write_text
from verl_uae.seeding import generator

#: Sets of prompts whose scores do not compare.
ORIGINAL, REWRITTEN = "original", "rewritten"

#: What a rewriter must leave as it was, where its file has it.
_REQUIREMENTS = ("tag", "include", "exclude")

#: Key that the metadata of a GenEval sample gets for a rewritten prompt; its scorer passes it on and ignores it.
DRAWN_PROMPT = "drawn_prompt"

#: JPEG of the GenEval++ pictures: nothing visible is lost, and its scorer compresses them again.
JPEG = {"quality": 95, "subsampling": 0}

IMAGES, MANIFEST, PROMPTS = "images", "manifest.json", "prompts.jsonl"

#: Name of the initial noise; seed, digest of the benchmark's own prompt, its occurrence and the sample complete it.
NOISE = "bench prompt noise"


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One prompt of a benchmark."""

    text: str
    """The benchmark's own text, which the scorer knows."""
    drawn: str
    """The text that is drawn: ``text``, or its rewritten form."""
    tag: str | None = None
    """The category; None for DPG-Bench, whose categories belong to questions."""
    occurrence: int = field(default=0, compare=False)
    """How many prompts before it have the same text."""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The line of the benchmark's file; empty for DPG-Bench."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts of a benchmark, and what was or is to be drawn of them."""

    bench: Bench
    name: str
    """``original`` or ``rewritten``."""
    prompts: Mapping[str, BenchPrompt]
    """In the benchmark's order, by name within it: ``00000`` of GenEval, ``1`` of GenEval++, the stem of the file of
    DPG-Bench."""
    samples: int
    """Per prompt."""
    source: Mapping[str, Any]
    """``source`` and ``rewritten``: ``path`` and ``sha256`` of the prompts; ``drawing``: settings, where it is ours."""


Picture = Mapping[str, Any]
"""What is recorded of a file the scorer reads: ``file``, its path below the folder of pictures; ``prompt``,
``drawn_prompt`` and ``occurrence``, see `BenchPrompt`; ``samples``, the numbers of those in it, row by row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerLayout:
    """How a benchmark wants its pictures."""

    samples: int
    """Samples per prompt that the benchmark asks for."""
    most_samples: int | None = None
    """Samples per prompt that its scorer can read; None is any number."""
    file: str
    """Name of a picture, by prompt and sample."""
    owned: str
    """Pattern of the files the scorer would read, in `re` syntax."""
    repository: str
    commit: str
    """Of the scorer whose format this is."""
    command: str
    """How it is run on the pictures."""

    def pictures(self, key: str, prompt: BenchPrompt, samples: int) -> list[Picture]:
        """The files of a prompt: one for each sample, or one with all of them."""
        about = {"prompt": prompt.text, "drawn_prompt": prompt.drawn, "occurrence": prompt.occurrence}
        numbers = [[n] for n in range(samples)] if "{sample" in self.file else [list(range(samples))]
        return [{"file": self.file.format(key=key, sample=found[0]), **about, "samples": found} for found in numbers]

    def encode(self, images: Sequence[Image.Image]) -> bytes:
        """The file of samples: PNG, or JPEG for GenEval++."""
        image = images[0] if len(images) == 1 else grid(images)
        return encoded(image.convert("RGB"), "JPEG", **JPEG) if self.file.endswith(".jpg") else encoded(image)


LAYOUTS: Mapping[str, ScorerLayout] = {
    "geneval": ScorerLayout(
        samples=4,
        file="{key}/samples/{sample:04d}.png",
        owned=r"\d+/(samples/\d+\.png|metadata\.jsonl|grid\.png)",
        repository="https://github.com/djghosh13/geneval",
        commit="af4902f24d3ca90ebbb446dd9891a59e0f82725f",
        command="python evaluation/evaluate_images.py {images} --outfile results.jsonl --model-path DETECTOR",
    ),
    "genevalpp": ScorerLayout(
        samples=1,
        most_samples=1,
        file="{key}.jpg",
        owned=r"\d+\.jpg",
        repository="https://github.com/yejy53/Echo-4o",
        commit="28f36d76558e5f53b9deceda78bf025ef0d0ea24",
        command="in Eval-gpt-4.1-geneval++.py: image_dir = Path('{images}'), then run it",
    ),
    "dpg": ScorerLayout(
        samples=4,
        most_samples=4,
        file="{key}.png",
        owned=r"[^/]+\.png",
        repository="https://github.com/TencentQQGYLab/ELLA",
        commit="3c228f1dc6c4d3cad0a47493816151a419f14db3",
        command="PYTHONHASHSEED=0 PIC_NUM={samples} bash dpg_bench/dist_eval.sh {images} {resolution}",
    ),
}


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in rows of two, without borders; a place that is left over is black."""
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, (len(images) + 1) // 2 * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % 2 * width, index // 2 * height))
    return sheet


def read_prompts(
    bench: Bench,
    source: str | os.PathLike[str],
    rewritten: str | os.PathLike[str] | None = None,
    *,
    samples: int | None = None,
    name: str | None = None,
) -> PromptSet:
    """Read the prompts of a benchmark.

    Args:
        bench: ``geneval``, ``genevalpp`` or ``dpg``.
        source: the benchmark's own file (JSON lines with ``tag`` and ``prompt``), or its folder of text files.
        rewritten: texts to draw instead: JSON lines with ``prompt``, or one text per line, in the order of ``source``;
            for DPG-Bench a folder of files with the same names.
        samples: per prompt; default: what the benchmark asks for.
        name: ``original`` or ``rewritten``, where rewritten texts were drawn that are not at hand.

    Raises:
        ConfigError: the benchmark is unknown, a file or folder does not exist, or the scorer cannot read that many
            samples.
        DataError: a line is no prompt, or the rewritten prompts belong to other originals.
    """
    if bench not in BENCHES:
        raise ConfigError("bench", f"must be one of {', '.join(BENCHES)}, got {bench!r}")
    if name not in (None, ORIGINAL, REWRITTEN):
        raise ConfigError("--prompt-set", f"must be {ORIGINAL} or {REWRITTEN}, got {name!r}")
    if rewritten is not None and name == ORIGINAL:
        raise ConfigError("--prompt-set", f"is {ORIGINAL}, but rewritten prompts are given")
    most, count = LAYOUTS[bench].most_samples, LAYOUTS[bench].samples if samples is None else samples
    if count < 1 or (most is not None and count > most):
        allowed = "at least 1" if most is None else ("1" if most == 1 else f"1 to {most}")
        raise ConfigError("--samples", f"must be {allowed} for {bench}, got {count}")
    path, other = Path(source), None if rewritten is None else Path(rewritten)
    lines = _folder(path) if bench == "dpg" else _metadata(path, first=bench == "genevalpp")
    if not lines:
        raise DataError(path, None, "has no prompts")
    drawn = [line["prompt"] for line in lines.values()] if other is None else _rewritten(bench, other, lines)
    seen: Counter[str] = Counter()
    prompts = {}
    for (key, line), text in zip(lines.items(), drawn, strict=True):
        original = line["prompt"]
        metadata = {} if bench == "dpg" else line
        prompts[key] = BenchPrompt(original, text, metadata.get("tag"), seen[original], metadata)
        seen[original] += 1
    found = {"source": _origin(path), "rewritten": None if other is None else _origin(other), "drawing": None}
    return PromptSet(bench, name or (ORIGINAL if other is None else REWRITTEN), prompts, count, found)


def _metadata(path: Path, first: int) -> dict[str, dict[str, Any]]:
    lines = _json_lines(path)
    for row, line in enumerate(lines):
        if not isinstance(line.get("tag"), str) or not line["tag"]:
            raise DataError(path, row, "has no tag")
    # GenEval counts from 00000 (generation/diffusers_generate.py), GenEval++ from 1 (Eval.md).
    return {str(row + 1) if first else f"{row:05d}": line for row, line in enumerate(lines)}


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


def _folder(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_dir():
        raise ConfigError("prompts", f"{path} is not a folder of text files")
    found = {}
    for file in sorted(path.glob("*.txt")):
        if "." in file.stem:
            raise DataError(file, None, "the scorer takes the name up to the first point; rename it")
        found[file.stem] = {"prompt": read_text(file).strip()}
        if not found[file.stem]["prompt"]:
            raise DataError(file, None, "has no prompt")
    return found


def _rewritten(bench: Bench, path: Path, originals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if bench == "dpg":
        texts = _folder(path)
        missing = [key for key in originals if key not in texts]
        if missing:
            raise DataError(path / f"{missing[0]}.txt", None, f"missing, and {len(missing) - 1} more")
        return [texts[key]["prompt"] for key in originals]
    lines = _json_lines(path) if path.suffix == ".jsonl" else [{"prompt": text} for text in _text_lines(path)]
    if len(lines) != len(originals):
        raise DataError(path, None, f"has {len(lines)} prompts for {len(originals)} originals")
    for row, (line, original) in enumerate(zip(lines, originals.values(), strict=True)):
        for name in _REQUIREMENTS:
            if name in line and line[name] != original.get(name):
                raise DataError(path, row, f"its {name} is not that of the original: another order, or another set")
    return [line["prompt"] for line in lines]


def _origin(path: Path) -> dict[str, str]:
    digest = sha256()
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode() if path.is_dir() else b"")
        digest.update(content)
    return {"path": str(path), "sha256": digest.hexdigest()}


@dataclass(slots=True)
class DrawnPrompts:
    """What became of the share of one process."""

    pictures: int = 0
    kept: int = 0
    """Of ``pictures``, those that were there already."""
    truncated: int = 0
    """Of ``pictures``, those whose prompt is longer than the condition."""


def draw_prompts(
    pipe: UAEPipeline,
    prompts: PromptSet,
    out: str | os.PathLike[str],
    settings: DrawSettings,
    *,
    resolution: int | None = None,
    with_grid: bool = False,
    shard: tuple[int, int] = (0, 1),
    on_picture: Callable[[int, int], None] = lambda done, count: None,
) -> DrawnPrompts:
    """Draw every prompt of a benchmark.

    Writes ``images/`` (what the scorer reads), ``manifest.json`` (settings), ``prompts.jsonl`` (one line for each
    prompt: original, drawn text, tag, files) and ``records.jsonl`` (one line for each picture). The noise of a sample
    belongs to the seed, the original prompt and the number of the sample: two models, or an original and its rewritten
    prompt, start from the same. Samples are drawn one at a time, so no batch size changes them.

    Args:
        out: folder to write to; an ``images/`` in it that is not of an earlier run is refused.
        resolution: side of a sample in its file, pixels; default: as drawn. Others are resampled (Lanczos).
        with_grid: also write ``grid.png`` for each prompt of GenEval, for people.
        shard: (I, N): this process is one of N that draw into one folder; it takes every N-th prompt from I on, from 0.
        on_picture: told (done, all) after each picture of the share.

    Raises:
        ConfigError: the settings do not suit the benchmark, or ``out`` has foreign pictures.
    """
    layout = LAYOUTS[prompts.bench]
    if with_grid and prompts.bench != "geneval":
        raise ConfigError("--grid", "is for geneval")
    index, count = shard
    records = "records.jsonl" if count == 1 else f"records-{index:05d}-of-{count:05d}.jsonl"
    out = Path(out)
    images = out / IMAGES
    if images.is_dir() and any(images.iterdir()):
        if not (out / MANIFEST).is_file():
            raise ConfigError(
                "--out", f"{images} has files, but {out / MANIFEST} does not exist: not of an earlier run"
            )
        if (bench := read_manifest(out).get("bench")) != prompts.bench:
            raise ConfigError("--out", f"{out} has the pictures of {bench}")
    images.mkdir(parents=True, exist_ok=True)
    described = describe_settings(pipe, settings, given=True)
    del described["captions"]
    described["resolution"] = resolution or max(pipe.picture_size)
    described["picture"] = {"format": "JPEG", **JPEG} if layout.file.endswith(".jpg") else {"format": "PNG"}
    pictures = {key: layout.pictures(key, prompt, prompts.samples) for key, prompt in prompts.prompts.items()}
    _write_manifest(out, prompts, described, pictures)
    if index == 0:
        wanted = {picture["file"] for files in pictures.values() for picture in files}
        wanted |= {f"{key}/metadata.jsonl" for key in pictures} | {f"{key}/grid.png" for key in pictures if with_grid}
        _delete_others(images, layout, wanted)
    own = dict(list(pictures.items())[index::count])
    painter = Painter(
        images,
        out / records,
        described,
        [picture for files in own.values() for picture in files],
        # Those of every shard: the number of processes may be another than before.
        earlier=out.glob("records*.jsonl"),
    )

    def draw(picture: Picture) -> tuple[bytes, dict[str, Any]]:
        origin = (sha256(picture["prompt"].encode()).hexdigest(), picture["occurrence"])
        samples, truncated = [], False
        for sample in picture["samples"]:
            noise = generator(settings.seed, NOISE, *origin, sample)
            image, truncated = draw_one(pipe, picture["drawn_prompt"], noise)
            if resolution is not None and image.size != (resolution, resolution):
                image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
            samples.append(image)
        return layout.encode(samples), {"truncated": truncated}

    drawn, total = DrawnPrompts(), sum(map(len, own.values()))
    for key, files in own.items():
        if prompts.bench == "geneval":
            _write_metadata(images / key, prompts.prompts[key])
        fresh = False
        for picture in files:
            record, kept = painter.paint(picture, functools.partial(draw, picture))
            drawn.pictures, drawn.kept, fresh = drawn.pictures + 1, drawn.kept + kept, fresh or not kept
            drawn.truncated += record["truncated"]
            on_picture(drawn.pictures, total)
        sheet = images / key / "grid.png"
        if with_grid and (fresh or not sheet.is_file()):
            samples = [Image.open(images / picture["file"]).convert("RGB") for picture in files]
            write_bytes(sheet, encoded(grid(samples)), beside=images)
    return drawn


def _write_metadata(folder: Path, prompt: BenchPrompt) -> None:
    """What GenEval's scorer is told of a prompt, with the drawn text where it is another."""
    folder.mkdir(exist_ok=True)
    drawn = {} if prompt.drawn == prompt.text else {DRAWN_PROMPT: prompt.drawn}
    write_text(folder / "metadata.jsonl", json.dumps({**prompt.metadata, **drawn}))


def _write_manifest(
    out: Path, prompts: PromptSet, described: Mapping[str, Any], pictures: Mapping[str, Sequence[Picture]]
) -> None:
    layout = LAYOUTS[prompts.bench]
    places = {"images": (out / IMAGES).resolve(), "samples": prompts.samples, "resolution": described["resolution"]}
    scorer = {"repository": layout.repository, "commit": layout.commit, "command": layout.command.format(**places)}
    manifest = {
        "bench": prompts.bench,
        "prompt_set": prompts.name,
        "prompts": len(prompts.prompts),
        "samples_per_prompt": prompts.samples,
        "pictures": sum(map(len, pictures.values())),
        **prompts.source,
        "scorer": scorer,
        "drawing": dict(described),
    }
    write_json(out / MANIFEST, manifest)
    lines = []
    for key, prompt in prompts.prompts.items():
        about = {"key": key, "tag": prompt.tag, "prompt": prompt.text, "drawn_prompt": prompt.drawn}
        lines.append(json.dumps({**about, "files": [picture["file"] for picture in pictures[key]]}))
    write_text(out / PROMPTS, "".join(f"{line}\n" for line in lines))


def _delete_others(images: Path, layout: ScorerLayout, wanted: set[str]) -> None:
    """Delete what the scorer would read besides this set: it takes every file it finds."""
    folders = {parent.as_posix() for name in wanted for parent in Path(name).parents}
    for path in sorted(images.rglob("*"), reverse=True):
        name = path.relative_to(images).as_posix()
        if path.is_file() and name not in wanted and re.fullmatch(layout.owned, name):
            path.unlink()
        elif path.is_dir() and name not in folders and not any(path.iterdir()):
            path.rmdir()


def read_manifest(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder that `draw_prompts` wrote; ConfigError if there is none."""
    path = Path(out) / MANIFEST
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError("--drawn", f"{path} cannot be read: {error}") from error


def read_drawn(bench: Bench, out: str | os.PathLike[str]) -> PromptSet:
    """What `draw_prompts` set out to draw, drawn or not.

    Raises:
        ConfigError: ``out`` is no such folder, or of another benchmark.
        DataError: its list of prompts is damaged.
    """
    manifest = read_manifest(out)
    if manifest.get("bench") != bench:
        raise ConfigError("--drawn", f"{out} has the pictures of {manifest.get('bench')}, not of {bench}")
    path = Path(out) / PROMPTS
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        prompts = {line["key"]: BenchPrompt(line["prompt"], line["drawn_prompt"], line["tag"]) for line in lines}
        samples, name = int(manifest["samples_per_prompt"]), str(manifest["prompt_set"])
        source = {key: manifest[key] for key in ("source", "rewritten", "drawing")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(path, None, f"is not what was written: {error}") from error
    if len(prompts) != manifest["prompts"]:
        raise DataError(path, None, f"has {len(prompts)} prompts, the manifest {manifest['prompts']}")
    return PromptSet(bench, name, prompts, samples, source)
