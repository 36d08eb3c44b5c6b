# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Reconstructions of a folder of pictures: caption each, or take given captions, and draw.

A run can be killed and started again. A picture is kept if the source, the caption and every setting are what they
were and the file is what was written; else it is drawn anew.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from verl_uae.bench.pairs import PREFIX, captions_by_key, image_files, key_of, recon_name
from verl_uae.bench.results import CAPTIONS
from verl_uae.chain.pipeline import UAEPipeline
from verl_uae.checkpoints.inference import CAPTION_ENTRIES
from verl_uae.checkpoints.names import MANIFEST
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import append_line, sha256_of, write_bytes, write_json, write_text
from verl_uae.seeding import generator
from verl_uae.text import text_problem

PICTURES, SETTINGS = "pictures", "drawing.json"

#: Names of the random numbers; the digest of the source and the seed complete them.
NOISE, CAPTION = "bench noise", "bench caption"


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawSettings:
    """What a reconstruction depends on besides the settings of the pipeline and the picture."""

    model: str
    """Folder or hub id, for the record."""
    captioner: str | None = None
    """Folder of the captioner, where it is not the model's own."""
    seed: int = 0
    captioner_engine: str = "transformers"
    """What writes the captions, where they are not given."""


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
    on_picture: Callable[[int, int], None] = lambda done, count: None,
    captions_first: Callable[..., Mapping[str, str]] | None = None,
) -> Drawn:
    """Reconstruct every picture of a folder.

    Writes ``pictures/recon_<stem>.png``, ``captions.jsonl`` (one line for each picture, readable by
    `read_captions`) and ``drawing.json`` (settings). The noise belongs to the seed and the source picture: two
    captioners, or two decoders, start from the same.

    Args:
        out: folder to write to, outside of ``images``.
        captions: draw these instead of asking the captioner: by path below ``images``, or by file name.
        on_picture: told (done, all) after each picture.
        captions_first: writes the captions of all pictures that have to be drawn before the first is drawn, see
            :class:`~verl_uae.chain.cli.CaptionsFirst`; None: the pipeline writes each as it is drawn.

    Raises:
        ConfigError: ``out`` lies in ``images``, or ``images`` has no pictures.
    """
    sources = {key_of(source, images): source for source in image_files(images)}
    if not sources:
        raise ConfigError("images", f"no pictures in {images}")
    out = Path(out)
    if out.resolve().is_relative_to(Path(images).resolve()):
        raise ConfigError("--out", f"{out} lies in {images}, so reconstructions would count as originals")
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    described = describe_settings(pipe, settings, given=captions is not None)
    write_json(out / SETTINGS, described)
    done = Drawn(out / PICTURES, described)
    # Of two originals whose reconstructions would have one name, the first.
    keys: dict[str, str] = {}
    for key, source in sources.items():
        keys.setdefault(recon_name(source.stem), key)
    wanted = [{"file": key, "picture": name} for name, key in keys.items()]
    painter = Painter(done.pictures, out / CAPTIONS, described, wanted)
    texts = None if captions is None else captions_by_key(captions, list(sources))
    written: Mapping[str, str] | None = None
    if captions_first is not None and texts is None:
        new = (sources[key] for key in keys.values() if not painter.has(key, sources[key]))
        written = captions_first((partial(decode_image, source) for source in new), settings.seed, CAPTION)

    def reconstruct(key: str, name: str) -> tuple[dict[str, Any], bool]:
        if keys[name] != key:
            raise DataError(sources[key], None, f"its reconstruction would have the name of that of {keys[name]}")
        wanted = {"file": key, "picture": name}
        if texts is not None:
            if key not in texts:
                raise DataError(sources[key], None, "no caption was given for it")
            if (problem := text_problem(texts[key])) is not None:
                raise DataError(sources[key], None, f"its caption holds {problem}")
            wanted["caption"] = texts[key]
        image = decode_image(sources[key])
        digest = image_digest(image)

        def draw() -> tuple[bytes, dict[str, Any]]:
            caption = wanted.get("caption") if written is None else written[digest]
            if caption is None:
                caption = pipe.caption(image, generator=generator(settings.seed, CAPTION, digest))[0]
            drawn, truncated = draw_one(pipe, caption, generator(settings.seed, NOISE, digest))
            return encoded(drawn), {"caption": caption, "truncated": truncated}

        return painter.paint({**wanted, "sha256": digest}, draw)

    for index, (key, source) in enumerate(sources.items()):
        name = recon_name(source.stem)
        try:
            record, kept = reconstruct(key, name)
        except DataError as error:
            done.reasons[key] = error.message
            if keys[name] == key:
                (done.pictures / name).unlink(missing_ok=True)
        else:
            done.captions[key] = record["caption"]
            done.kept += kept
        on_picture(index + 1, len(sources))
    painter.keep_only(done.captions)
    # A picture whose original is gone would be one without a reference.
    drawn = {record["picture"] for record in painter.records.values()}
    for path in image_files(done.pictures):
        if path.name.startswith(PREFIX) and path.name not in drawn:
            path.unlink()
    return done


def describe_settings(pipe: UAEPipeline, settings: DrawSettings, *, given: bool) -> dict[str, Any]:
    """Everything that decides what is drawn, as JSON; without what only the captioner reads if captions are given."""
    height, width = pipe.picture_size
    unread = CAPTION_ENTRIES if given else ()
    return {
        **asdict(settings),
        "captions": "given" if given else "model",
        **{name: value for name, value in asdict(pipe.inference).items() if name not in unread},
        "height": height,
        "width": width,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "model_fingerprint": fingerprint(settings.model),
        "captioner_fingerprint": None if settings.captioner is None else fingerprint(settings.captioner),
    }


def fingerprint(model: str) -> str | None:
    """Tells an altered folder from the one before, without reading its weights; None for a hub id.

    The digest of ``manifest.json``, which has that of every file; else of the names, sizes and times of all files.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    manifest = folder / MANIFEST
    if manifest.is_file():
        return sha256_of(manifest)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return sha256(json.dumps(listing).encode()).hexdigest()


def settings_digest(described: Mapping[str, Any]) -> str:
    """Digest of what `describe_settings` returned: equal for settings that draw the same."""
    # The name of a folder says nothing about what is in it; the fingerprint does.
    named = {key: value for key, value in described.items() if key not in ("model", "captioner")}
    if described["model_fingerprint"] is None:
        named["model"] = described["model"]
    return sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


class Painter:
    """Draws pictures into a folder and keeps a record of each, one JSON line, so that a run that was killed goes on.

    A picture from before is kept if its record has everything that is wanted of it and the file is what was written.
    The entry ``file`` names what was drawn. It is the path of the picture in the folder, unless ``picture`` is.

    Args:
        pictures: folder of pictures.
        path: file of records to write.
        described: what `describe_settings` returned.
        wanted: entries of the record of every picture of this run; those without one from before are deleted at once.
        earlier: other files of records of the same folder.
    """

    def __init__(
        self,
        pictures: Path,
        path: Path,
        described: Mapping[str, Any],
        wanted: Iterable[Mapping[str, Any]],
        earlier: Iterable[Path] = (),
    ) -> None:
        self.pictures, self.path, self.settings = pictures, path, settings_digest(described)
        self.records: dict[str, dict[str, Any]] = {}
        by_file = {asked["file"]: asked for asked in wanted}
        for entry in _read_records(sorted({path, *earlier})):
            # Pictures of others are not looked at: another process may just be deleting them.
            asked = by_file.get(entry["file"])
            if asked is None or not {**asked, "settings": self.settings}.items() <= entry.items():
                continue
            picture = pictures / _picture(entry)
            if picture.is_file() and sha256_of(picture) == entry.get("picture_sha256"):
                self.records[entry["file"]] = entry
        for asked in (asked for file, asked in by_file.items() if file not in self.records):
            (pictures / _picture(asked)).unlink(missing_ok=True)
        self._write()

    def has(self, file: str, source: Path) -> bool:
        """Whether there is a picture from before of this very source."""
        record = self.records.get(file)
        try:
            return record is not None and record.get("sha256") == image_digest(decode_image(source))
        except DataError:
            return False

    def paint(
        self, wanted: Mapping[str, Any], draw: Callable[[], tuple[bytes, Mapping[str, Any]]]
    ) -> tuple[dict[str, Any], bool]:
        """The record of a picture, and whether it was there already.

        Args:
            wanted: entries of the record that decide whether a picture from before is kept.
            draw: gives the file of a new one, and further entries of its record.
        """
        earlier = self.records.get(wanted["file"])
        if earlier is not None and wanted.items() <= earlier.items():
            return earlier, True
        data, about = draw()
        path = self.pictures / _picture(wanted)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not among the pictures, where a scorer might take it for one.
        write_bytes(path, data, beside=self.path)
        record = {**wanted, **about, "settings": self.settings, "picture_sha256": sha256(data).hexdigest()}
        self.records[record["file"]] = record
        if earlier is None:
            append_line(self.path, json.dumps(record))
        else:
            self._write()
        return record, False

    def keep_only(self, files: Iterable[str]) -> None:
        """Forget the records of all others."""
        self.records = {file: self.records[file] for file in files}
        self._write()

    def _write(self) -> None:
        # ASCII: a text may hold a character that Python counts as the end of a line.
        write_text(self.path, "".join(f"{json.dumps(record)}\n" for record in self.records.values()))


def _picture(record: Mapping[str, Any]) -> str:
    """Path of its picture below the folder of pictures."""
    return str(record.get("picture", record["file"]))


def _read_records(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Records of earlier runs; a line that a kill cut short is left out."""
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("file"), str):
                yield entry


def draw_one(pipe: UAEPipeline, text: str, noise: torch.Generator) -> tuple[Image.Image, bool]:
    """The picture of a text, and whether the condition is shorter than the text."""
    output = pipe.generate(text, generator=noise)
    image: Image.Image = output.images[0]
    return image, bool(output.truncated[0])


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
