# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a folder that is packed: listed, judged, and read a second time when rows are written."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from PIL import Image

from verl_uae.data.captions import read_sidecar
from verl_uae.data.images import ImageLimits, decode_image, encoded_bytes, image_digest, rewrite_reason
from verl_uae.data.limits import MAX_TEXT_BYTES
from verl_uae.data.quarantine import BadItem
from verl_uae.data.schema import Message, make_row
from verl_uae.errors import DataError
from verl_uae.text import printable

SIDECAR = ".txt"
"""Ending of a caption in a file of its own, beside the picture."""
_ALONE = "a text with no picture beside it; the caption of x.png is x.txt"
_PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the folder that can be used."""

    file: str
    """Path in the folder, as the system gives it."""
    file_sha256: str
    digest: str
    """`images.image_digest` of what will be stored."""
    size: tuple[int, int]
    """(W, H) of what will be stored, pixels."""
    rewrite: str | None
    """Why it is stored as new PNG bytes, or None."""
    split: str = "train"

    @property
    def source(self) -> str:
        """The path as text that can be encoded."""
        return printable(self.file)


def list_files(folder: Path) -> tuple[list[str], list[BadItem]]:
    """All files below ``folder`` as sorted relative paths, and the linked folders that were not followed."""

    def stop(error: OSError) -> None:
        raise DataError(error.filename or folder, None, f"cannot list: {error.strerror}") from error

    files: list[str] = []
    linked: list[BadItem] = []
    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=False):
        base = Path(parent).relative_to(folder)
        files += [(base / name).as_posix() for name in names]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        linked += [
            BadItem(printable((base / name).as_posix()), None, "linked folder is not followed") for name in links
        ]
    return sorted(files), linked


def is_apple_double(name: str) -> bool:
    """Whether a path names the attributes that macOS keeps beside a file of another file system, ``._x.png``."""
    return name.rpartition("/")[2].startswith("._")


def find_sidecars(files: Sequence[str]) -> dict[str, str]:
    """Text file -> the picture of the same name beside it; a text beside several pictures belongs to the first.

    A text that has no such picture belongs to one whose name differs in the Unicode form of accents alone.
    """
    pictures: dict[str, str] = {}
    similar: dict[str, str] = {}
    texts: dict[str, str] = {}
    for file in files:
        path = PurePosixPath(file)
        stem, ending = str(path.with_suffix("")), path.suffix.lower()
        if is_apple_double(file):
            continue
        if ending in _PICTURE_ENDINGS:
            pictures.setdefault(stem, file)
            similar.setdefault(normalize("NFC", stem), file)
        elif ending == SIDECAR:
            texts[file] = stem
    beside = {file: pictures.get(stem) or similar.get(normalize("NFC", stem)) for file, stem in texts.items()}
    return {text: picture for text, picture in beside.items() if picture is not None}


def read_sidecars(folder: Path, sidecars: Mapping[str, str]) -> tuple[dict[str, str], list[BadItem]]:
    """Picture -> caption of the text file beside it, and the text files that hold none, or a second one."""
    captions: dict[str, str] = {}
    bad: list[BadItem] = []
    limits = ImageLimits(max_bytes=MAX_TEXT_BYTES)
    for text, picture in sidecars.items():
        if picture in captions:
            bad.append(BadItem(printable(text), None, f"a second caption for {printable(picture)}"))
            continue
        try:
            captions[picture] = read_sidecar(encoded_bytes(text, limits=limits, root=folder))
        except DataError as error:
            bad.append(BadItem(printable(text), None, error.message))
        except ValueError as error:
            bad.append(BadItem(printable(text), None, str(error)))
    return captions, bad


def inspect_all(
    folder: Path, files: Sequence[str], limits: ImageLimits, max_pixels: int | None, threads: int
) -> tuple[list[Picture], list[BadItem]]:
    """Decode every file once, in threads: the pictures, and the files that are none."""

    def inspect(file: str) -> Picture | BadItem:
        if is_apple_double(file):
            return BadItem(printable(file), None, "attributes of a file, kept by macOS, and no picture")
        try:
            return _inspect(folder, file, limits, max_pixels)
        except DataError as error:
            alone = PurePosixPath(file).suffix.lower() == SIDECAR
            return BadItem(printable(file), None, _ALONE if alone else error.message)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        results = list(pool.map(inspect, files))
    return [r for r in results if isinstance(r, Picture)], [r for r in results if isinstance(r, BadItem)]


@dataclass(frozen=True, slots=True)
class Rows:
    """Turns pictures into rows, reading each a second time. One that has changed since costs itself."""

    folder: Path
    prompt: Sequence[Message] | None
    captions: Mapping[str, str]
    """By `Picture.file`."""
    data_source: str
    limits: ImageLimits
    max_pixels: int | None
    written: list[Picture] = field(default_factory=list)
    lost: list[BadItem] = field(default_factory=list)

    def __call__(self, pictures: Sequence[Picture], first: int) -> Iterator[dict[str, Any]]:
        """Rows of some pictures, numbered from ``first``; adds to ``written`` and ``lost``."""
        index = first
        for picture in pictures:
            try:
                row = self._row(picture, index)
            except DataError as error:
                self.lost.append(BadItem(picture.source, None, error.message))
                continue
            self.written.append(picture)
            index += 1
            yield row

    def _row(self, picture: Picture, index: int) -> dict[str, Any]:
        data = encoded_bytes(picture.file, limits=self.limits, root=self.folder)
        if hashlib.sha256(data).hexdigest() != picture.file_sha256:
            raise DataError(self.folder / picture.source, None, "file changed while the folder was being packed")
        if picture.rewrite is not None:
            buffer = io.BytesIO()
            _shrunk(decode_image(data, limits=self.limits), self.max_pixels, self.limits).save(buffer, "PNG")
            data = buffer.getvalue()
        return make_row(
            data,
            index=index,
            split=picture.split,
            sha256=picture.digest,
            prompt=self.prompt,
            data_source=self.data_source,
            source=picture.source,
            size=picture.size,
            caption=self.captions.get(picture.file),
        )


def _inspect(folder: Path, file: str, limits: ImageLimits, max_pixels: int | None) -> Picture:
    data = encoded_bytes(file, limits=limits, root=folder)
    img = decode_image(data, limits=limits)
    rewrite = rewrite_reason(data)
    if max_pixels is not None and img.width * img.height > max_pixels:
        rewrite = "size"
    img = _shrunk(img, max_pixels, limits)
    return Picture(file, hashlib.sha256(data).hexdigest(), image_digest(img), img.size, rewrite)


def _shrunk(img: Image.Image, max_pixels: int | None, limits: ImageLimits) -> Image.Image:
    if max_pixels is None or img.width * img.height <= max_pixels:
        return img
    scale = math.sqrt(max_pixels / (img.width * img.height))
    size = (int(img.width * scale), int(img.height * scale))
    if min(size) < limits.min_side:
        raise DataError("<picture>", None, f"{img.width} x {img.height} pixels cannot be scaled down to {max_pixels}")
    return img.resize(size, Image.Resampling.BICUBIC)
