# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pack a folder of pictures into verl's parquet files, or pairs into webdataset shards.

The result depends on the pictures, their names, the seed and the arguments, and on nothing else. Pictures are read
twice: once to judge them and to hash what will be stored, once to write, so that memory does not grow with the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from verl_uae.data.captions import read_captions
from verl_uae.data.images import DEFAULT_LIMITS, ImageLimits, decode_image, encoded_bytes, image_digest, rewrite_reason
from verl_uae.data.pack_write import write_parquet, write_shard
from verl_uae.data.quarantine import BadItem, published, write_items
from verl_uae.data.schema import Message, make_prompt, make_row
from verl_uae.errors import ConfigError, DataError
from verl_uae.seeding import derive_seed

logger = logging.getLogger(__name__)

TRAIN_FILE, VAL_FILE = "train.parquet", "val.parquet"
QUARANTINE_FILE, REPORT_FILE = "quarantine.jsonl", "report.json"
FORMATS: tuple[str, ...] = ("parquet", "webdataset")
_SHARD_FILE = re.compile(r"(train|val)-\d{6}\.tar")


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed. Written as ``report.json``, last, so its presence says the folder is complete."""

    files_seen: int
    train: int
    val: int
    duplicates: int
    """Pictures equal to an earlier one after decoding; they are listed in the quarantine file."""
    bad: int
    rewritten: dict[str, int]
    """Reason -> number of pictures stored as new PNG bytes; all others are stored byte for byte."""
    with_caption: int
    captions_unused: int
    width: tuple[int, int, int]
    """Smallest, median and largest stored width, pixels."""
    height: tuple[int, int, int]
    sha256: dict[str, str]
    """Output file -> SHA-256 of its bytes."""
    bytes: dict[str, int]
    seed: int
    val_fraction: float
    max_pixels: int | None


@dataclass(frozen=True, slots=True)
class _Picture:
    source: str
    file: str
    file_sha256: str
    digest: str
    size: tuple[int, int]
    rewrite: str | None
    split: str = "train"


def pack(
    folder: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    prompt: str | Sequence[Message] | None = None,
    captions: Mapping[str, str] | str | os.PathLike[str] | None = None,
    val_fraction: float = 0.05,
    seed: int = 0,
    max_pixels: int | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    data_source: str = "uae",
    threads: int = 2,
    overwrite: bool = False,
    format: str = "parquet",
    shard_size: int = 1000,
) -> PackReport:
    """Write ``train.parquet``, ``val.parquet``, ``quarantine.jsonl`` and ``report.json``.

    With the format ``webdataset`` there are ``train-000000.tar``, ``val-000000.tar`` and so on in place of the parquet
    files, for `shards.PairShards`: pictures with a caption only, in an order drawn from content and seed.

    Every file below ``folder`` is looked at, in the order of its path; links that leave the folder and linked folders
    are refused. PNG and JPEG bytes are stored as they are (with their metadata) when every reader would see the same
    picture; WebP, transparent, rotated, 16-bit and too large pictures are stored as new, plain PNG.

    Args:
        folder: where the pictures are.
        out_dir: where the files go; must not lie inside ``folder``.
        prompt: user text, or messages; default: `schema.make_prompt`.
        captions: path in the folder -> caption, or a JSON-lines file of ``{"file": .., "caption": ..}``.
        val_fraction: chance in [0, 1) of a picture to be held out, drawn from its content and ``seed``: adding
            pictures moves none of the others, and equal pictures cannot end up in both files. With a fraction above 0
            and two pictures, neither file is empty. With 0 there is no ``val.parquet``.
        seed: of the split.
        max_pixels: larger pictures are scaled down to at most this many pixels.
        limits: what the image door refuses.
        data_source: written to every row.
        threads: decoding threads.
        overwrite: replace files that exist, of either format.
        format: one of `FORMATS`.
        shard_size: pictures per tar shard.

    Raises:
        ConfigError: for an impossible argument.
        DataError: for an unreadable folder or caption file, or if no picture is left.
    """
    folder, out_dir = Path(folder).resolve(), Path(out_dir).resolve()
    _check_arguments(folder, out_dir, val_fraction, max_pixels, limits, overwrite)
    _check_format(format, shard_size, captions is not None)
    messages = make_prompt(prompt) if isinstance(prompt, str) else prompt
    texts = captions if isinstance(captions, Mapping) else read_captions(captions) if captions is not None else {}
    _check_prompt(messages)
    files, bad = _list_files(folder)
    pictures, more_bad = _inspect_all(folder, files, limits, max_pixels, threads)
    pictures, duplicates = _drop_duplicates(pictures)
    if not pictures:
        raise DataError(
            folder, None, f"no picture can be used, {len(files)} files seen; first: {[*bad, *more_bad][:1]}"
        )
    if texts and not any(picture.source in texts for picture in pictures):
        raise DataError(folder, None, f"no caption names a picture of this folder, e.g. {next(iter(texts))!r}")
    uncaptioned: list[BadItem] = []
    if format == "webdataset":
        uncaptioned = [
            BadItem(picture.source, None, "no caption") for picture in pictures if picture.source not in texts
        ]
        pictures = [picture for picture in pictures if picture.source in texts]
        if not pictures:
            raise DataError(folder, None, "no picture has a caption")
    pictures = _split(pictures, val_fraction, seed)
    quarantine = sorted([*bad, *more_bad, *duplicates, *uncaptioned], key=lambda item: item.file)
    parts = _parts(pictures, seed, shard_size) if format == "webdataset" else _halves(pictures)

    out_dir.mkdir(parents=True, exist_ok=True)
    old = _packed_files(out_dir)
    outputs = [out_dir / name for name in (*parts, QUARANTINE_FILE, REPORT_FILE)]
    with published(*outputs) as (*data, listed, summary):
        rows = _Rows(folder, messages, texts, data_source, limits, max_pixels)
        for path, (first, part) in zip(data, parts.values(), strict=True):
            write = write_shard if format == "webdataset" else write_parquet
            write(path, (rows(picture, index) for index, picture in enumerate(part, first)))
        write_items(listed, quarantine)
        written = dict(zip((*parts, QUARANTINE_FILE), (*data, listed), strict=True))
        report = _report(pictures, quarantine, len(duplicates), texts, written, seed, val_fraction, max_pixels)
        # An old report beside new files would lie if the renames were interrupted.
        outputs[-1].unlink(missing_ok=True)
        summary.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    for name in set(old) - set(parts) - {REPORT_FILE}:
        (out_dir / name).unlink()
    logger.info(
        "packed %d train and %d val rows into %s, left out %d", report.train, report.val, out_dir, len(quarantine)
    )
    return report


def _check_arguments(
    folder: Path, out_dir: Path, val_fraction: float, max_pixels: int | None, limits: ImageLimits, overwrite: bool
) -> None:
    if not folder.is_dir():
        raise DataError(folder, None, "not a folder")
    if out_dir.is_relative_to(folder):
        raise ConfigError("out_dir", f"{out_dir} lies inside the packed folder {folder}")
    if not 0.0 <= val_fraction < 1.0:
        raise ConfigError("val_fraction", f"must lie in [0, 1), got {val_fraction}")
    if max_pixels is not None and not limits.min_side**2 <= max_pixels:
        raise ConfigError("max_pixels", f"must be at least min_side**2 = {limits.min_side**2}, got {max_pixels}")
    existing = _packed_files(out_dir)
    if existing and not overwrite:
        raise ConfigError("overwrite", f"{out_dir} already holds {', '.join(existing)}")


def _check_format(format: str, shard_size: int, captioned: bool) -> None:
    if format not in FORMATS:
        raise ConfigError("format", f"must be one of {', '.join(FORMATS)}, got {format!r}")
    if shard_size < 1:
        raise ConfigError("shard_size", f"must be at least 1, got {shard_size}")
    if format == "webdataset" and not captioned:
        raise ConfigError("captions", "webdataset shards hold pairs: captions are needed")


def _packed_files(out_dir: Path) -> list[str]:
    """Names of what an earlier run left, except its list of bad files."""
    names = [name for name in (TRAIN_FILE, VAL_FILE, REPORT_FILE) if (out_dir / name).exists()]
    shards = (path.name for path in out_dir.glob("*.tar") if _SHARD_FILE.fullmatch(path.name))
    return names + sorted(shards)


def _check_prompt(prompt: Sequence[Message] | None) -> None:
    try:
        make_row(b"", index=0, split="train", sha256="", prompt=prompt)
    except DataError as error:
        raise ConfigError("prompt", error.message) from error


def _list_files(folder: Path) -> tuple[list[str], list[BadItem]]:
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
            BadItem(_printable((base / name).as_posix()), None, "linked folder is not followed") for name in links
        ]
    return sorted(files), linked


def _inspect_all(
    folder: Path, files: Sequence[str], limits: ImageLimits, max_pixels: int | None, threads: int
) -> tuple[list[_Picture], list[BadItem]]:
    def inspect(file: str) -> _Picture | BadItem:
        try:
            return _inspect(folder, file, limits, max_pixels)
        except DataError as error:
            return BadItem(_printable(file), None, error.message)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        results = list(pool.map(inspect, files))
    return [r for r in results if isinstance(r, _Picture)], [r for r in results if isinstance(r, BadItem)]


def _inspect(folder: Path, file: str, limits: ImageLimits, max_pixels: int | None) -> _Picture:
    data = encoded_bytes(file, limits=limits, root=folder)
    img = decode_image(data, limits=limits)
    rewrite = rewrite_reason(data)
    if max_pixels is not None and img.width * img.height > max_pixels:
        rewrite = "size"
    img = _shrunk(img, max_pixels, limits)
    sha256 = hashlib.sha256(data).hexdigest()
    return _Picture(_printable(file), file, sha256, image_digest(img), img.size, rewrite)


def _shrunk(img: Image.Image, max_pixels: int | None, limits: ImageLimits) -> Image.Image:
    if max_pixels is None or img.width * img.height <= max_pixels:
        return img
    scale = math.sqrt(max_pixels / (img.width * img.height))
    size = (int(img.width * scale), int(img.height * scale))
    if min(size) < limits.min_side:
        raise DataError("<picture>", None, f"{img.width} x {img.height} pixels cannot be scaled down to {max_pixels}")
    return img.resize(size, Image.Resampling.BICUBIC)


def _drop_duplicates(pictures: Sequence[_Picture]) -> tuple[list[_Picture], list[BadItem]]:
    first: dict[str, _Picture] = {}
    duplicates: list[BadItem] = []
    for picture in pictures:
        kept = first.setdefault(picture.digest, picture)
        if kept is not picture:
            duplicates.append(BadItem(picture.source, None, f"same picture as {kept.source}"))
    return list(first.values()), duplicates


def _split(pictures: Sequence[_Picture], val_fraction: float, seed: int) -> list[_Picture]:
    draws = [derive_seed("split", seed, picture.digest) / 2**63 for picture in pictures]
    held_out = [draw < val_fraction for draw in draws]
    if val_fraction > 0 and len(pictures) > 1:
        if not any(held_out):
            held_out[draws.index(min(draws))] = True
        elif all(held_out):
            held_out[draws.index(max(draws))] = False
    return [replace(p, split="val" if held else "train") for p, held in zip(pictures, held_out, strict=True)]


_Parts = dict[str, tuple[int, list[_Picture]]]
"""Output file -> number of its first row in the split, and its pictures."""


def _halves(pictures: Sequence[_Picture]) -> _Parts:
    splits = {
        name: [p for p in pictures if p.split == split] for name, split in ((TRAIN_FILE, "train"), (VAL_FILE, "val"))
    }
    return {name: (0, part) for name, part in splits.items() if part}


def _parts(pictures: Sequence[_Picture], seed: int, shard_size: int) -> _Parts:
    """Shards are read in the order in which they are written, so it must not be that of the names."""
    shuffled = sorted(pictures, key=lambda picture: derive_seed("shard-order", seed, picture.digest))
    parts: _Parts = {}
    for split in ("train", "val"):
        part = [picture for picture in shuffled if picture.split == split]
        for number, first in enumerate(range(0, len(part), shard_size)):
            parts[f"{split}-{number:06d}.tar"] = (first, part[first : first + shard_size])
    return parts


@dataclass(frozen=True, slots=True)
class _Rows:
    """Turns pictures into rows, reading each a second time."""

    folder: Path
    prompt: Sequence[Message] | None
    captions: Mapping[str, str]
    data_source: str
    limits: ImageLimits
    max_pixels: int | None

    def __call__(self, picture: _Picture, index: int) -> dict[str, Any]:
        data = encoded_bytes(picture.file, limits=self.limits, root=self.folder)
        if hashlib.sha256(data).hexdigest() != picture.file_sha256:
            raise DataError(self.folder / picture.source, None, "file changed while it was being packed")
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
            caption=self.captions.get(picture.source),
        )


def _report(
    pictures: Sequence[_Picture],
    quarantine: Sequence[BadItem],
    duplicates: int,
    captions: Mapping[str, str],
    written: Mapping[str, Path],
    seed: int,
    val_fraction: float,
    max_pixels: int | None,
) -> PackReport:
    splits = Counter(picture.split for picture in pictures)
    sources = {picture.source for picture in pictures}
    existing = {name: path for name, path in written.items() if path.exists()}
    return PackReport(
        files_seen=len(pictures) + len(quarantine),
        train=splits["train"],
        val=splits["val"],
        duplicates=duplicates,
        bad=len(quarantine) - duplicates,
        rewritten=dict(sorted(Counter(picture.rewrite for picture in pictures if picture.rewrite).items())),
        with_caption=len(sources & set(captions)),
        captions_unused=len(set(captions) - sources),
        width=_spread([picture.size[0] for picture in pictures]),
        height=_spread([picture.size[1] for picture in pictures]),
        sha256={name: _file_sha256(path) for name, path in existing.items()},
        bytes={name: path.stat().st_size for name, path in existing.items()},
        seed=seed,
        val_fraction=val_fraction,
        max_pixels=max_pixels,
    )


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _printable(file: str) -> str:
    """A file name as valid UTF-8; bytes that are not become escapes."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
