# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Draw the prompts of a benchmark into the folder its scorer reads.

A run can be killed and started again. A picture is kept if its prompt, every setting and the model are what they were
and the file is what was written; else it is deleted at the start, so that the folder never holds pictures of two
runs, and drawn anew. Several processes may share the work (`Shard`).
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from verl_uae.bench.draw import DrawSettings, Painter, describe_settings, draw_one, png, settings_digest
from verl_uae.bench.external.prompts import (
    JPEG,
    LAYOUTS,
    BenchPrompt,
    PictureFile,
    PromptSet,
    ScorerLayout,
    grid,
)
from verl_uae.chain.pipeline import UAEPipeline
from verl_uae.errors import ConfigError
from verl_uae.files import write_bytes, write_json, write_text
from verl_uae.seeding import generator

IMAGES, MANIFEST, PROMPTS = "images", "manifest.json", "prompts.jsonl"

#: Name of the initial noise; seed, digest of the benchmark's own prompt, its occurrence and the sample complete it.
NOISE = "bench prompt noise"


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several processes that draw into one folder: it takes every ``count``-th prompt from ``index`` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError("--shard", f"must be I/N with I from 0 to N-1, got {self.index}/{self.count}")

    @property
    def records(self) -> str:
        """Name of the file of records."""
        return "records.jsonl" if self.count == 1 else f"records-{self.index:05d}-of-{self.count:05d}.jsonl"


@dataclass(slots=True)
class DrawnPrompts:
    """What became of the share of one process."""

    images: Path
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
    samples: int | None = None,
    resolution: int | None = None,
    with_grid: bool = False,
    shard: Shard | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> DrawnPrompts:
    """Draw every prompt of a benchmark.

    Writes ``images/`` (what the scorer reads), ``manifest.json`` (settings), ``prompts.jsonl`` (one line for each
    prompt: original, drawn text, tag, files) and ``records.jsonl`` (one line for each picture). The noise of a sample
    belongs to the seed, the original prompt and the number of the sample: two models, or an original and its rewritten
    prompt, start from the same. Samples are drawn one at a time, so no batch size changes them.

    Args:
        pipe: pipeline on its device.
        prompts: what `read_prompts` returned.
        out: folder to write to; an ``images/`` in it that is not of an earlier run is refused.
        settings: see there.
        samples: per prompt; default: what the benchmark asks for.
        resolution: side of a sample in its file, pixels; default: as drawn. Others are resampled (Lanczos).
        with_grid: also write ``grid.png`` for each prompt of GenEval, for people.
        shard: the share of this process.
        on_picture: told (done, all) after each picture of the share.

    Raises:
        ConfigError: the settings do not suit the benchmark, or ``out`` has foreign pictures.
    """
    layout = LAYOUTS[prompts.bench]
    count = layout.check_samples(layout.samples if samples is None else samples)
    if with_grid and prompts.bench != "geneval":
        raise ConfigError("--grid", "is for geneval")
    described = _described(pipe, settings, layout, resolution or max(pipe.picture_size))
    out, shard = Path(out), shard or Shard()
    pictures = {prompt.key: layout.pictures(prompt, count) for prompt in prompts.prompts}
    _check_out(out, layout)
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    _write_manifest(out, prompts, layout, described, pictures)
    own = prompts.prompts[shard.index :: shard.count]
    if shard.index == 0:
        wanted = {picture.file for files in pictures.values() for picture in files}
        wanted |= {f"{key}/metadata.jsonl" for key in pictures} | {f"{key}/grid.png" for key in pictures if with_grid}
        _delete_others(out / IMAGES, layout, wanted)
    painter = Painter(
        out / IMAGES,
        out / shard.records,
        settings_digest(described),
        # Those of every shard: the number of processes may be another than before.
        earlier=out.glob("records*.jsonl"),
        wanted=[_wanted(picture) for prompt in own for picture in pictures[prompt.key]],
    )

    def draw(picture: PictureFile) -> tuple[bytes, dict[str, Any]]:
        drawn = [_sample(pipe, settings.seed, picture.prompt, sample, resolution) for sample in picture.samples]
        return layout.encode([image for image, _ in drawn]), {"truncated": drawn[0][1]}

    drawn, total = DrawnPrompts(out / IMAGES), sum(len(pictures[prompt.key]) for prompt in own)
    for prompt in own:
        for name, text in layout.texts(prompt).items():
            (out / IMAGES / name).parent.mkdir(exist_ok=True)
            write_text(out / IMAGES / name, text)
        fresh = False
        for picture in pictures[prompt.key]:
            record, kept = painter.paint(_wanted(picture), functools.partial(draw, picture))
            drawn.pictures, drawn.kept, fresh = drawn.pictures + 1, drawn.kept + kept, fresh or not kept
            drawn.truncated += record["truncated"]
            if on_picture is not None:
                on_picture(drawn.pictures, total)
        if with_grid:
            _write_grid(out / IMAGES / prompt.key / "grid.png", pictures[prompt.key], out / IMAGES, fresh)
    return drawn


def _wanted(picture: PictureFile) -> dict[str, Any]:
    return {
        "file": picture.file,
        "prompt": picture.prompt.text,
        "drawn_prompt": picture.prompt.drawn,
        "occurrence": picture.prompt.occurrence,
        "samples": list(picture.samples),
    }


def _sample(
    pipe: UAEPipeline, seed: int, prompt: BenchPrompt, sample: int, resolution: int | None
) -> tuple[Image.Image, bool]:
    digest = sha256(prompt.text.encode()).hexdigest()
    image, truncated = draw_one(pipe, prompt.drawn, generator(seed, NOISE, digest, prompt.occurrence, sample))
    if resolution is not None and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return image, truncated


def read_manifest(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder that `draw_prompts` wrote.

    Raises:
        ConfigError: there is none.
    """
    path = Path(out) / MANIFEST
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError("--drawn", f"{path} cannot be read: {error}") from error


def _described(pipe: UAEPipeline, settings: DrawSettings, layout: ScorerLayout, resolution: int) -> dict[str, Any]:
    described = describe_settings(pipe, settings, given=True)
    del described["captions"]
    picture = {"format": "JPEG", **JPEG} if layout.bench == "genevalpp" else {"format": "PNG"}
    return {**described, "resolution": resolution, "picture": picture}


def _check_out(out: Path, layout: ScorerLayout) -> None:
    images = out / IMAGES
    if not images.is_dir() or not any(images.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise ConfigError("--out", f"{images} has files, but {out / MANIFEST} does not exist: not of an earlier run")
    bench = read_manifest(out).get("bench")
    if bench != layout.bench:
        raise ConfigError("--out", f"{out} has the pictures of {bench}")


def _write_manifest(
    out: Path,
    prompts: PromptSet,
    layout: ScorerLayout,
    described: Mapping[str, Any],
    pictures: Mapping[str, list[PictureFile]],
) -> None:
    samples = sum(len(picture.samples) for picture in next(iter(pictures.values())))
    command = layout.command.format(
        images=(out / IMAGES).resolve(), samples=samples, resolution=described["resolution"]
    )
    manifest = {
        "bench": prompts.bench,
        "prompt_set": prompts.name,
        "prompts": len(prompts.prompts),
        "samples_per_prompt": samples,
        "pictures": sum(len(files) for files in pictures.values()),
        "source": prompts.source,
        "rewritten": prompts.rewritten,
        "scorer": {"repository": layout.repository, "commit": layout.commit, "command": command},
        "drawing": dict(described),
    }
    write_json(out / MANIFEST, manifest)
    lines = (
        {
            "key": prompt.key,
            "tag": prompt.tag,
            "prompt": prompt.text,
            "drawn_prompt": prompt.drawn,
            "files": [picture.file for picture in pictures[prompt.key]],
        }
        for prompt in prompts.prompts
    )
    write_text(out / PROMPTS, "".join(f"{json.dumps(line)}\n" for line in lines))


def _delete_others(images: Path, layout: ScorerLayout, wanted: set[str]) -> None:
    """Delete what the scorer would read besides this set: it takes every file it finds."""
    folders = {parent.as_posix() for name in wanted for parent in Path(name).parents}
    for path in sorted(images.rglob("*"), reverse=True):
        name = path.relative_to(images).as_posix()
        if path.is_file() and name not in wanted and re.fullmatch(layout.owned, name):
            path.unlink()
        elif path.is_dir() and name not in folders and not any(path.iterdir()):
            path.rmdir()


def _write_grid(path: Path, pictures: Iterable[PictureFile], images: Path, fresh: bool) -> None:
    if fresh or not path.is_file():
        samples = []
        for picture in pictures:
            with Image.open(images / picture.file) as sample:
                samples.append(sample.convert("RGB"))
        write_bytes(path, png(grid(samples)), beside=images)
