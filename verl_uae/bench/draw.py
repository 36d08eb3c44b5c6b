# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Reconstructions of a folder of pictures: caption each, or take given captions, and draw.

A run can be killed and started again. A picture is kept if the source, the caption and every setting are what they
were and the file is what was written; else it is drawn anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from verl_uae.bench.pairs import PREFIX, captions_by_key, image_files, key_of, recon_name
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import append_line, sha256_of, write_bytes, write_json, write_text
from verl_uae.formats.inference import CAPTION_ENTRIES
from verl_uae.pipeline.pipeline import UAEPipeline
from verl_uae.seeding import generator
from verl_uae.text import text_problem

PICTURES, CAPTIONS, SETTINGS = "pictures", "captions.jsonl", "drawing.json"

#: Names of the random numbers; the digest of the source and the seed complete them.
NOISE, CAPTION = "bench noise", "bench caption"


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawSettings:
    """What a reconstruction depends on besides the settings of the pipeline and the picture."""

    model: str
    """Folder or hub id, for the record."""
    encoder: str | None = None
    """Folder of the captioner, where it is not the model's own."""
    seed: int = 0


@dataclass(slots=True)
class Drawn:
    """What became of a folder of pictures."""

    pictures: Path
    settings: dict[str, Any]
    captions: dict[str, str] = field(default_factory=dict)
    """By path below the folder."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why there is no reconstruction, by path below the folder."""
    kept: int = 0
    """Reconstructions that were there already."""


def draw_folder(
    pipe: UAEPipeline,
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: DrawSettings,
    captions: Mapping[str, str] | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Reconstruct every picture of a folder.

    Writes ``pictures/recon_<stem>.png``, ``captions.jsonl`` (one line for each picture, readable by
    `read_captions`) and ``drawing.json`` (settings). The noise belongs to the seed and the source picture: two
    captioners, or two decoders, start from the same.

    Args:
        pipe: pipeline on its device.
        images: folder of originals.
        out: folder to write to, outside of ``images``.
        settings: see there.
        captions: draw these instead of asking the captioner: by path below ``images``, or by file name.
        on_picture: told (done, all) after each picture.

    Raises:
        ConfigError: ``out`` lies in ``images``, or ``images`` has no pictures.
    """
    sources = image_files(images)
    if not sources:
        raise ConfigError("images", f"no pictures in {images}")
    out = Path(out)
    if out.resolve().is_relative_to(Path(images).resolve()):
        raise ConfigError("--out", f"{out} lies in {images}, so reconstructions would count as originals")
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    described = describe_settings(pipe, settings, given=captions is not None)
    write_json(out / SETTINGS, described)
    done = Drawn(out / PICTURES, described)
    painter = _Painter(pipe, settings, out, settings_digest(described))
    names: dict[str, str] = {}
    texts = captions_by_key(captions or {}, [key_of(source, images) for source in sources])
    for index, source in enumerate(sources):
        key = key_of(source, images)
        name = recon_name(source.stem)
        try:
            if name in names:
                raise DataError(source, None, f"its reconstruction would have the name of that of {names[name]}")
            names[name] = key
            given = None if captions is None else _given(texts, key, source)
            record, kept = painter.reconstruct(key, source, name, given)
        except DataError as error:
            done.reasons[key] = error.message
            if names.get(name) == key:
                (out / PICTURES / name).unlink(missing_ok=True)
        else:
            done.captions[key] = record["caption"]
            done.kept += kept
        if on_picture is not None:
            on_picture(index + 1, len(sources))
    painter.finish(done.captions)
    return done


def _given(captions: Mapping[str, str], key: str, source: Path) -> str:
    caption = captions.get(key)
    if caption is None:
        raise DataError(source, None, "no caption was given for it")
    problem = text_problem(caption)
    if problem is not None:
        raise DataError(source, None, f"its caption holds {problem}")
    return caption


def describe_settings(pipe: UAEPipeline, settings: DrawSettings, *, given: bool) -> dict[str, Any]:
    """Everything that decides what is drawn, as JSON; without what only the captioner reads if captions are given."""
    described: dict[str, Any] = {**asdict(settings), "captions": "given" if given else "model"}
    height, width = pipe.picture_size
    described |= {**asdict(pipe.inference), "height": height, "width": width}
    if given:
        for name in CAPTION_ENTRIES:
            del described[name]
    described["dtype"] = str(pipe.transformer.dtype).removeprefix("torch.")
    described["model_fingerprint"] = fingerprint(settings.model)
    described["encoder_fingerprint"] = None if settings.encoder is None else fingerprint(settings.encoder)
    return described


def fingerprint(model: str) -> str | None:
    """Tells an altered folder from the one before, without reading its weights; None for a hub id.

    It is the digest of ``manifest.json``, which has the digest of every file; else that of the names, sizes and
    times of all files.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return sha256_of(manifest)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def settings_digest(described: Mapping[str, Any]) -> str:
    """Digest of what `describe_settings` returned: equal for settings that draw the same."""
    # The name of a folder says nothing about what is in it; the fingerprint does.
    named = {key: value for key, value in described.items() if key not in ("model", "encoder")}
    if described["model_fingerprint"] is None:
        named["model"] = described["model"]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


class _Painter:
    """Draws one picture at a time and keeps the record."""

    def __init__(self, pipe: UAEPipeline, settings: DrawSettings, out: Path, digest: str) -> None:
        self.pipe, self.settings, self.out, self.digest = pipe, settings, out, digest
        self.records = {key: entry for key, entry in _read_records(out / CAPTIONS).items() if self._is_ours(entry)}
        self._write()

    def _is_ours(self, entry: Mapping[str, Any]) -> bool:
        path = self.out / PICTURES / str(entry.get("picture"))
        return (
            entry.get("settings") == self.digest and path.is_file() and sha256_of(path) == entry.get("picture_sha256")
        )

    def _write(self) -> None:
        # ASCII: a caption may hold a character that Python counts as the end of a line.
        write_text(self.out / CAPTIONS, "".join(f"{json.dumps(entry)}\n" for entry in self.records.values()))

    def reconstruct(self, key: str, source: Path, name: str, given: str | None) -> tuple[dict[str, Any], bool]:
        """The record of a picture, and whether it was there already."""
        image = decode_image(source)
        digest = image_digest(image)
        known = self.records.get(key)
        wanted = {"sha256": digest, "picture": name} | ({} if given is None else {"caption": given})
        if known is not None and wanted.items() <= known.items():
            return known, True
        caption = self._caption(image, digest) if given is None else given
        encoded, truncated = self._draw(caption, digest)
        write_bytes(self.out / PICTURES / name, encoded)
        record = {
            "file": key,
            "caption": caption,
            "picture": name,
            "truncated": truncated,
            "sha256": digest,
            "picture_sha256": hashlib.sha256(encoded).hexdigest(),
            "settings": self.digest,
        }
        replaced = key in self.records
        self.records[key] = record
        if replaced:
            self._write()
        else:
            append_line(self.out / CAPTIONS, json.dumps(record))
        return record, False

    def finish(self, wanted: Mapping[str, str]) -> None:
        """Drop the records and pictures of originals that are gone, which would be pictures without a reference."""
        self.records = {key: self.records[key] for key in wanted}
        self._write()
        pictures = {entry["picture"] for entry in self.records.values()}
        for path in image_files(self.out / PICTURES):
            if path.name.startswith(PREFIX) and path.name not in pictures:
                path.unlink()

    def _caption(self, image: Image.Image, digest: str) -> str:
        return self.pipe.caption(image, generator=generator(self.settings.seed, CAPTION, digest))[0]

    def _draw(self, caption: str, digest: str) -> tuple[bytes, bool]:
        output = self.pipe.generate(caption, generator=generator(self.settings.seed, NOISE, digest))
        encoded = io.BytesIO()
        output.images[0].save(encoded, "PNG")
        return encoded.getvalue(), bool(output.truncated[0])


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of an earlier run by file; a line that a kill cut short is left out."""
    records: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and {"file", "caption", "sha256"} <= entry.keys():
                records[str(entry["file"])] = entry
    return records
