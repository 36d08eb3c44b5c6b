# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Draw the prompts of a benchmark into the folder its scorer reads.

A run can be killed and started again. A picture is kept if its prompt, every setting and the model are what they were
and the file is what was written; else it is deleted at the start, so that the folder never holds pictures of two
runs, and drawn anew. Several processes may share the work (`Shard`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from verl_uae.bench.draw import DrawSettings, describe_settings, settings_digest
from verl_uae.bench.external.layout import JPEG, LAYOUTS, Layout, Picture, grid
from verl_uae.bench.external.prompts import Prompt, PromptSet
from verl_uae.errors import ConfigError
from verl_uae.files import append_line, published, sha256_of, write_bytes, write_json, write_text
from verl_uae.pipeline.pipeline import UAEPipeline
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
    painter = _Painter(pipe, settings, out, layout, resolution, settings_digest(described), shard)
    if shard.index == 0:
        wanted = {picture.file for files in pictures.values() for picture in files}
        wanted |= {f"{key}/metadata.jsonl" for key in pictures} | {f"{key}/grid.png" for key in pictures if with_grid}
        _delete_others(out / IMAGES, layout, wanted)
    painter.forget_others([picture for prompt in own for picture in pictures[prompt.key]])
    drawn, total = DrawnPrompts(out / IMAGES), sum(len(pictures[prompt.key]) for prompt in own)
    for prompt in own:
        for name, text in layout.texts(prompt).items():
            (out / IMAGES / name).parent.mkdir(exist_ok=True)
            write_text(out / IMAGES / name, text)
        fresh = False
        for picture in pictures[prompt.key]:
            record, kept = painter.draw(picture)
            drawn.pictures, drawn.kept, fresh = drawn.pictures + 1, drawn.kept + kept, fresh or not kept
            drawn.truncated += record["truncated"]
            if on_picture is not None:
                on_picture(drawn.pictures, total)
        if with_grid:
            _write_grid(out / IMAGES / prompt.key / "grid.png", pictures[prompt.key], out / IMAGES, fresh)
    return drawn


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


def _described(pipe: UAEPipeline, settings: DrawSettings, layout: Layout, resolution: int) -> dict[str, Any]:
    described = describe_settings(pipe, settings, given=True)
    del described["captions"]
    picture = {"format": "JPEG", **JPEG} if layout.bench == "genevalpp" else {"format": "PNG"}
    return {**described, "resolution": resolution, "picture": picture}


def _check_out(out: Path, layout: Layout) -> None:
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
    layout: Layout,
    described: Mapping[str, Any],
    pictures: Mapping[str, list[Picture]],
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


def _delete_others(images: Path, layout: Layout, wanted: set[str]) -> None:
    """Delete what the scorer would read besides this set: it takes every file it finds."""
    folders = {parent.as_posix() for name in wanted for parent in Path(name).parents}
    for path in sorted(images.rglob("*"), reverse=True):
        name = path.relative_to(images).as_posix()
        if path.is_file() and name not in wanted and re.fullmatch(layout.owned, name):
            path.unlink()
        elif path.is_dir() and name not in folders and not any(path.iterdir()):
            path.rmdir()


def _write_grid(path: Path, pictures: Iterable[Picture], images: Path, fresh: bool) -> None:
    if fresh or not path.is_file():
        samples = []
        for picture in pictures:
            with Image.open(images / picture.file) as sample:
                samples.append(sample.convert("RGB"))
        with published(path, sync=False) as (temporary,):
            grid(samples).save(temporary, "PNG")


class _Painter:
    """Draws one picture at a time and keeps the record."""

    def __init__(
        self,
        pipe: UAEPipeline,
        settings: DrawSettings,
        out: Path,
        layout: Layout,
        resolution: int | None,
        digest: str,
        shard: Shard,
    ) -> None:
        self.pipe, self.settings, self.layout, self.resolution = pipe, settings, layout, resolution
        self.out, self.digest, self.path = out, digest, out / shard.records
        self.records: dict[str, dict[str, Any]] = {}

    def forget_others(self, pictures: Iterable[Picture]) -> None:
        """Find the records of ``pictures`` in the files of all shards; delete those pictures that have none."""
        known = _read_records(self.out)
        for picture in pictures:
            for record in known.get(picture.file, []):
                if self._wanted(picture).items() <= record.items() and self._is_as_written(record):
                    self.records[picture.file] = record
            if picture.file not in self.records:
                (self.out / IMAGES / picture.file).unlink(missing_ok=True)
        # ASCII: a prompt may hold a character that Python counts as the end of a line.
        write_text(self.path, "".join(f"{json.dumps(record)}\n" for record in self.records.values()))

    def _wanted(self, picture: Picture) -> dict[str, Any]:
        return {
            "file": picture.file,
            "prompt": picture.prompt.text,
            "drawn_prompt": picture.prompt.drawn,
            "occurrence": picture.prompt.occurrence,
            "samples": list(picture.samples),
            "settings": self.digest,
        }

    def _is_as_written(self, record: Mapping[str, Any]) -> bool:
        path = self.out / IMAGES / record["file"]
        return path.is_file() and sha256_of(path) == record.get("picture_sha256")

    def draw(self, picture: Picture) -> tuple[dict[str, Any], bool]:
        """The record of a picture, and whether it was there already."""
        known = self.records.get(picture.file)
        if known is not None:
            return known, True
        drawn = [self._sample(picture.prompt, sample) for sample in picture.samples]
        encoded = self.layout.encode([image for image, _ in drawn])
        path = self.out / IMAGES / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not beside the pictures, where a scorer might take it for one.
        write_bytes(path, encoded, beside=self.path)
        record = self._wanted(picture) | {
            "truncated": drawn[0][1],
            "picture_sha256": hashlib.sha256(encoded).hexdigest(),
        }
        self.records[picture.file] = record
        append_line(self.path, json.dumps(record))
        return record, False

    def _sample(self, prompt: Prompt, sample: int) -> tuple[Image.Image, bool]:
        digest = hashlib.sha256(prompt.text.encode()).hexdigest()
        source = generator(self.settings.seed, NOISE, digest, prompt.occurrence, sample)
        output = self.pipe.generate(prompt.drawn, generator=source)
        image: Image.Image = output.images[0]
        if self.resolution is not None and image.size != (self.resolution, self.resolution):
            image = image.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        return image, bool(output.truncated[0])


def _read_records(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of every earlier run and shard by file; a line that a kill cut short is left out."""
    records: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("records*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("file"), str):
                records.setdefault(entry["file"], []).append(entry)
    return records
