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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from verl_uae.data.captions import (
    SIDECAR,
    caption_problem,
    find_sidecars,
    is_apple_double,
    match_captions,
    read_captions,
    read_sidecars,
)
from verl_uae.data.images import decode_image, encoded_bytes, image_digest, rewrite_reason
from verl_uae.data.limits import DEFAULT_LIMITS, ImageLimits, read_header
from verl_uae.data.rows import BadItem, item_lines
from verl_uae.data.schema import Message, make_prompt, make_row, write_parquet
from verl_uae.data.tar import webdataset
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import published, sha256_of
from verl_uae.seeding import derive_seed
from verl_uae.text import printable

logger = logging.getLogger(__name__)

TRAIN_FILE, VAL_FILE = "train.parquet", "val.parquet"
QUARANTINE_FILE, REPORT_FILE = "quarantine.jsonl", "report.json"
FORMATS: tuple[str, ...] = ("parquet", "webdataset")
_ALONE = "a text with no picture beside it; the caption of x.png is x.txt"
_HINT = "text beside {}, which --sidecars (sidecars=True) takes for its caption"
_SHARD_FILE = re.compile(r"(train|val)-\d{6}\.tar")


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
    """Captions that no packed picture has; they are listed in the quarantine file."""
    sidecars_unread: int
    """Texts beside a picture of the same name that were not asked for; they are listed in the quarantine file."""
    width: tuple[int, int, int]
    """Smallest, median and largest stored width, pixels."""
    height: tuple[int, int, int]
    sha256: dict[str, str]
    """Output file -> SHA-256 of its bytes."""
    bytes: dict[str, int]
    seed: int
    val_fraction: float
    max_pixels: int | None


_Parts = dict[str, tuple[int, list[Picture]]]
"""Output file -> number of its first row in the split, and its pictures."""


def pack(
    folder: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    prompt: str | Sequence[Message] | None = None,
    captions: Mapping[str, str] | str | os.PathLike[str] | None = None,
    sidecars: bool = False,
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
    files, for `pairs.PairShards`: pictures with a caption only, in an order drawn from content and seed.

    Every file below ``folder`` is looked at, in the order of its path; links that leave the folder and linked folders
    are refused. PNG and JPEG bytes are stored as they are (with their metadata) when every reader would see the same
    picture; WebP, transparent, rotated, 16-bit and too large pictures are stored as new, plain PNG.

    Args:
        folder, out_dir: where the pictures are, and where the files go; the latter must not lie inside the former.
        prompt: user text, or messages; default: `schema.make_prompt`.
        captions: path in the folder -> caption, or a JSON-lines file of ``{"file": .., "caption": ..}``; see
            `captions.match_captions`.
        sidecars: take the caption of ``x.png`` from ``x.txt`` beside it.
        val_fraction: chance in [0, 1) of a picture to be held out, drawn from its content and ``seed``: adding pictures
            moves none of the others, and equal pictures cannot end up in both files. With a fraction above 0 and two
            pictures, neither file is empty. With 0 there is no ``val.parquet``.
        max_pixels: larger pictures are scaled down to at most this many pixels.
        limits: what the image door refuses.
        data_source: written to every row.
        threads: for decoding.
        overwrite: replace files that exist, of either format.
        format: one of `FORMATS`; of ``webdataset`` with ``shard_size`` pictures per shard.

    Raises `ConfigError`: for an impossible argument; `DataError`: for an unreadable folder or caption file, or if no
    picture is left.
    """
    folder, out_dir = Path(folder).resolve(), Path(out_dir).resolve()
    _check_arguments(folder, out_dir, val_fraction, max_pixels, limits, overwrite, format, shard_size)
    if captions is not None and sidecars:
        raise ConfigError("captions", "come from a file or from texts beside the pictures (sidecars), not from both")
    if format == "webdataset" and captions is None and not sidecars:
        raise ConfigError("captions", "webdataset shards hold pairs: captions are needed, from a file or from sidecars")
    messages = make_prompt(prompt) if isinstance(prompt, str) else prompt
    by_name = captions if isinstance(captions, Mapping) else read_captions(captions) if captions is not None else {}
    try:
        make_row(b"", index=0, split="train", sha256="", prompt=messages)
    except DataError as error:
        raise ConfigError("prompt", error.message) from error
    files, linked = list_files(folder)
    beside = find_sidecars(files)
    pictures, bad = inspect_all(folder, [f for f in files if f not in beside], limits, max_pixels, threads)
    pictures, copies = _drop_duplicates(pictures)
    if not pictures:
        raise DataError(folder, None, f"no picture can be used, {len(files)} files seen; first: {[*linked, *bad][:1]}")
    hints = {} if sidecars else {text: _HINT.format(printable(picture)) for text, picture in beside.items()}
    if sidecars:
        by_name, unread = read_sidecars(folder, beside)
        bad += _items(unread)
    texts, unused = _captions_of(folder, by_name, files, pictures, copies)
    if format == "webdataset":
        bad += _items({picture.file: "no caption" for picture in pictures if picture.file not in texts})
        pictures = [picture for picture in pictures if picture.file in texts]
        if not pictures:
            raise DataError(folder, None, "no picture has a caption")
    left_out = {
        "bad": [*linked, *bad],
        "duplicates": _items({copy.file: f"same picture as {kept.source}" for copy, kept in copies}),
        "captions_unused": unused,
        "sidecars_unread": _items(hints),
    }
    parts = _parts(_split(pictures, val_fraction, seed), format, seed, shard_size)
    make = partial(_row, folder, limits, max_pixels, texts, {"prompt": messages, "data_source": data_source})
    seen = len(files) + len(linked)
    settings = {"seed": seed, "val_fraction": val_fraction, "max_pixels": max_pixels, "files_seen": seen}
    try:
        return _write(folder, out_dir, format, parts, make, left_out, settings)
    except OSError as error:
        # Pictures that cannot be read are data errors by now.
        raise DataError(out_dir, None, f"cannot be written: {error}") from error


def _check_arguments(
    folder: Path,
    out_dir: Path,
    val_fraction: float,
    max_pixels: int | None,
    limits: ImageLimits,
    overwrite: bool,
    format: str,
    shard_size: int,
) -> None:
    if not folder.is_dir():
        raise DataError(folder, None, "not a folder")
    if out_dir.is_relative_to(folder):
        raise ConfigError("out_dir", f"{out_dir} lies inside the packed folder {folder}")
    if not 0.0 <= val_fraction < 1.0:
        raise ConfigError("val_fraction", f"must lie in [0, 1), got {val_fraction}")
    if max_pixels is not None and not limits.min_side**2 <= max_pixels:
        raise ConfigError("max_pixels", f"must be at least min_side**2 = {limits.min_side**2}, got {max_pixels}")
    if (existing := _packed_files(out_dir)) and not overwrite:
        reason = f"{out_dir} already holds {', '.join(existing)}; name another, or set this (--overwrite)"
        raise ConfigError("overwrite", reason)
    if format not in FORMATS:
        raise ConfigError("format", f"must be one of {', '.join(FORMATS)}, got {format!r}")
    if shard_size < 1:
        raise ConfigError("shard_size", f"must be at least 1, got {shard_size}")


def _packed_files(out_dir: Path) -> list[str]:
    """Names of what an earlier run left, except its list of bad files."""
    names = [name for name in (TRAIN_FILE, VAL_FILE, REPORT_FILE) if (out_dir / name).exists()]
    return names + sorted(path.name for path in out_dir.glob("*.tar") if _SHARD_FILE.fullmatch(path.name))


def _items(reasons: Mapping[str, str]) -> list[BadItem]:
    """File -> why it is left out, as entries of the quarantine file."""
    return [BadItem(printable(file), None, reason) for file, reason in reasons.items()]


def list_files(folder: Path) -> tuple[list[str], list[BadItem]]:
    """All files below ``folder`` as sorted relative paths, and the linked folders that were not followed."""

    def stop(error: OSError) -> None:
        raise DataError(error.filename or folder, None, f"cannot list: {error.strerror}") from error

    files: list[str] = []
    linked: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=False):
        base = Path(parent).relative_to(folder)
        files += [(base / name).as_posix() for name in names]
        linked += [(base / name).as_posix() for name in folders if Path(parent, name).is_symlink()]
    return sorted(files), _items(dict.fromkeys(linked, "linked folder is not followed"))


def inspect_all(
    folder: Path, files: Sequence[str], limits: ImageLimits, max_pixels: int | None, threads: int
) -> tuple[list[Picture], list[BadItem]]:
    """Decode every file once, in threads: the pictures, and the files that are none."""

    def inspect(file: str) -> Picture | str:
        if is_apple_double(file):
            return "attributes of a file, kept by macOS, and no picture"
        try:
            data = encoded_bytes(file, limits=limits, root=folder)
            img = decode_image(data, limits=limits)
            small = _shrunk(img, max_pixels, limits)
            rewrite = rewrite_reason(data) if small is img else "size"
            return Picture(file, hashlib.sha256(data).hexdigest(), image_digest(small), small.size, rewrite)
        except DataError as error:
            return _ALONE if PurePosixPath(file).suffix.lower() == SIDECAR else error.message

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        results = dict(zip(files, pool.map(inspect, files), strict=True))
    pictures = [found for found in results.values() if isinstance(found, Picture)]
    return pictures, _items({file: found for file, found in results.items() if isinstance(found, str)})


def _drop_duplicates(pictures: Sequence[Picture]) -> tuple[list[Picture], list[tuple[Picture, Picture]]]:
    """The first of equal pictures, and the others, each with the one that is kept for it."""
    first: dict[str, Picture] = {}
    pairs = [(picture, first.setdefault(picture.digest, picture)) for picture in pictures]
    return list(first.values()), [(picture, kept) for picture, kept in pairs if kept is not picture]


def _captions_of(
    folder: Path,
    by_name: Mapping[str, str],
    files: Iterable[str],
    pictures: Sequence[Picture],
    copies: Sequence[tuple[Picture, Picture]],
) -> tuple[dict[str, str], list[BadItem]]:
    """Captions of the pictures, where one that has none takes that of its copy, and those that none has."""
    unused = {name: problem for name, text in by_name.items() if (problem := caption_problem(text)) is not None}
    usable = {name: text for name, text in by_name.items() if name not in unused}
    matched, unmatched = match_captions(usable, files)
    if usable and not matched:
        name = printable(next(iter(usable)))
        raise DataError(folder, None, f"no caption names a picture of this folder, e.g. {name!r}")
    texts = {picture.file: matched[picture.file] for picture in pictures if picture.file in matched}
    used = set(texts)
    for copy, kept in copies:
        if copy.file in matched and texts.setdefault(kept.file, matched[copy.file]) == matched[copy.file]:
            used.add(copy.file)
    left_out = dict.fromkeys(matched.keys() - used, "a caption, but its picture is left out")
    return texts, _items(unused | unmatched) + _items(left_out)


def _split(pictures: Sequence[Picture], val_fraction: float, seed: int) -> list[Picture]:
    draws = [derive_seed("split", seed, picture.digest) / 2**63 for picture in pictures]
    held_out = [draw < val_fraction for draw in draws]
    if val_fraction > 0 and len(pictures) > 1:
        if not any(held_out):
            held_out[draws.index(min(draws))] = True
        elif all(held_out):
            held_out[draws.index(max(draws))] = False
    return [replace(p, split="val" if held else "train") for p, held in zip(pictures, held_out, strict=True)]


def _parts(pictures: Sequence[Picture], format: str, seed: int, shard_size: int) -> _Parts:
    if format == "webdataset":
        # Shards are read in the order in which they are written, so it must not be that of the names.
        pictures = sorted(pictures, key=lambda picture: derive_seed("shard-order", seed, picture.digest))
    parts: _Parts = {}
    for split, file in (("train", TRAIN_FILE), ("val", VAL_FILE)):
        part = [picture for picture in pictures if picture.split == split]
        if format == "parquet" and part:
            parts[file] = (0, part)
        elif format == "webdataset":
            for number, first in enumerate(range(0, len(part), shard_size)):
                parts[f"{split}-{number:06d}.tar"] = (first, part[first : first + shard_size])
    return parts


def _row(
    folder: Path,
    limits: ImageLimits,
    max_pixels: int | None,
    texts: Mapping[str, str],
    known: Mapping[str, Any],
    picture: Picture,
    index: int,
) -> dict[str, Any]:
    """The row of a picture, read a second time; raises `DataError` for one that has changed since."""
    data = encoded_bytes(picture.file, limits=limits, root=folder)
    if hashlib.sha256(data).hexdigest() != picture.file_sha256:
        raise DataError(folder / picture.source, None, "file changed while the folder was being packed")
    if picture.rewrite is not None:
        buffer = io.BytesIO()
        _shrunk(decode_image(data, limits=limits), max_pixels, limits).save(buffer, "PNG")
        data = buffer.getvalue()
    known = {**known, "split": picture.split, "sha256": picture.digest, "source": picture.source, "size": picture.size}
    return make_row(data, index=index, caption=texts.get(picture.file), **known)


def _write(
    folder: Path,
    out_dir: Path,
    format: str,
    parts: _Parts,
    make: Callable[[Picture, int], dict[str, Any]],
    left_out: dict[str, list[BadItem]],
    settings: Mapping[str, Any],
) -> PackReport:
    packed: list[Picture] = []
    lost: list[BadItem] = []
    captions = 0

    def rows(pictures: Sequence[Picture], index: int) -> Iterator[dict[str, Any]]:
        nonlocal captions
        for picture in pictures:
            try:
                row = make(picture, index)
            except DataError as error:
                lost.append(BadItem(picture.source, None, error.message))
                continue
            packed.append(picture)
            captions += row["extra_info"]["caption"] is not None
            index += 1
            yield row

    out_dir.mkdir(parents=True, exist_ok=True)
    old = _packed_files(out_dir)
    outputs = [out_dir / name for name in (*parts, QUARANTINE_FILE, REPORT_FILE)]
    with published(*outputs) as (*data, listed, summary):
        write = write_shard if format == "webdataset" else write_parquet
        for path, (first, part) in zip(data, parts.values(), strict=True):
            write(path, rows(part, first))
        if not packed:
            raise DataError(folder, None, f"no picture is left; first: {lost[0]}")
        left_out["bad"] += lost
        items = sorted(chain.from_iterable(left_out.values()), key=lambda item: item.file)
        listed.write_text(item_lines(items), encoding="utf-8")
        made = zip((*parts, QUARANTINE_FILE), (*data, listed), strict=True)
        written = {name: path for name, path in made if path.exists()}
        splits = Counter(picture.split for picture in packed)
        report = PackReport(
            **settings,
            **{kind: len(found) for kind, found in left_out.items()},
            train=splits["train"],
            val=splits["val"],
            rewritten=dict(sorted(Counter(picture.rewrite for picture in packed if picture.rewrite).items())),
            with_caption=captions,
            width=_spread([picture.size[0] for picture in packed]),
            height=_spread([picture.size[1] for picture in packed]),
            sha256={name: sha256_of(path) for name, path in written.items()},
            bytes={name: path.stat().st_size for name, path in written.items()},
        )
        # An old report beside new files would lie if the renames were interrupted.
        outputs[-1].unlink(missing_ok=True)
        summary.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    for name in set(old) - set(parts) - {REPORT_FILE}:
        (out_dir / name).unlink()
    logger.info("packed %d train and %d val rows into %s, left out %d", report.train, report.val, out_dir, len(items))
    return report


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def _shrunk(img: Image.Image, max_pixels: int | None, limits: ImageLimits) -> Image.Image:
    if max_pixels is None or img.width * img.height <= max_pixels:
        return img
    scale = math.sqrt(max_pixels / (img.width * img.height))
    size = (int(img.width * scale), int(img.height * scale))
    if min(size) < limits.min_side:
        raise DataError("<picture>", None, f"{img.width} x {img.height} pixels cannot be scaled down to {max_pixels}")
    return img.resize(size, Image.Resampling.BICUBIC)


def write_shard(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `schema.make_row` as samples: ``<index, nine digits>.png`` (or ``.jpg``, ``.webp``), the picture as
    it is stored, and ``<index>.json`` with ``caption``, ``sha256``, ``source``, ``width`` and ``height``. Equal rows
    give equal bytes. Raises `ConfigError`: webdataset is not installed."""
    package = webdataset()
    with open(path, "wb") as file, package.TarWriter(file, encoder=False, mtime=0) as writer:
        for row in rows:
            image, info = row["images"][0]["bytes"], row["extra_info"]
            about = {key: info[key] for key in ("caption", "sha256", "source", "width", "height")}
            suffix = {"JPEG": "jpg"}.get(kind := read_header(image).format, kind.lower())
            text = json.dumps(about, ensure_ascii=False).encode()
            writer.write({"__key__": f"{info['index']:09d}", suffix: image, "json": text})
