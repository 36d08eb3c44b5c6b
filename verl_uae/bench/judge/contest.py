# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Two candidates over one folder of pictures: what is compared with what, and what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from verl_uae.bench.draw import PICTURES
from verl_uae.bench.pairs import find_pairs, image_files, key_of
from verl_uae.bench.results import CAPTIONS, Failure, named
from verl_uae.bench.unified import SECTION, read_unified
from verl_uae.data.captions import read_captions
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import ConfigError, DecodeError

CAPTION, RECONSTRUCTION = "caption", "reconstruction"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that decodes."""

    path: Path
    digest: str
    """`image_digest` of it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One source picture and what both candidates made of it: captions, or pictures."""

    key: str
    """Path of the source below its folder, with forward slashes."""
    source: Picture
    first: str | Picture
    second: str | Picture

    @property
    def identical(self) -> bool:
        """Whether there is nothing to choose between."""
        first, second = (
            content if isinstance(content, str) else content.digest for content in (self.first, self.second)
        )
        return first == second


@dataclass(frozen=True, slots=True)
class Contest:
    """What is to be judged."""

    mode: str
    names: tuple[str, str]
    """Of the candidates; judges never see them."""
    paths: tuple[str, str]
    comparisons: tuple[Comparison, ...]
    """In the order of the paths of the sources."""
    failures: tuple[Failure, ...]
    """Pictures that cannot be compared."""
    pictures: int
    """Source pictures in the folder."""


def read_contest(images: str | os.PathLike[str], first: str, second: str, mode: str) -> Contest:
    """Read two candidates.

    A candidate is ``[NAME=]PATH``. In mode ``caption`` the path is a captions file, a ``result.json`` of protocol 1, or
    a folder with a ``captions.jsonl``; where they know the digest of a picture, it has to be that of the source. In
    mode ``reconstruction`` it is a folder of pictures, one with a folder ``pictures``, or the ``result.json`` beside
    that; pictures are paired as in protocol 1.

    Args:
        images: folder of source pictures.
        first, second: candidates.
        mode: ``caption`` or ``reconstruction``.

    Raises:
        ConfigError: the names are equal, a path holds no candidate, or there is no picture to compare.
        DataError: a captions file or a result cannot be read.
    """
    sources = image_files(images)
    if not sources:
        raise ConfigError("images", f"no pictures in {images}")
    candidates = [named(text) for text in (first, second)]
    if candidates[0][0] == candidates[1][0]:
        raise ConfigError("candidates", f"two are named {candidates[0][0]!r}; name them with NAME=PATH")
    pictures, failures = _sources(sources, images)
    broken = {failure.what for failure in failures}
    sides = []
    for name, path in candidates:
        read = _captions if mode == CAPTION else _drawn
        contents, missing = read(path, Path(images), pictures)
        # A source that does not decode is the fault of neither candidate, and is listed already.
        failures += [
            Failure(f"{name}: {failure.what}", failure.reason) for failure in missing if failure.what not in broken
        ]
        sides.append(contents)
    comparisons = [
        Comparison(key, picture, sides[0][key], sides[1][key])
        for key, picture in pictures.items()
        if key in sides[0] and key in sides[1]
    ]
    if not comparisons:
        why = f", for example {failures[0].what}: {failures[0].reason}" if failures else ""
        raise ConfigError("candidates", f"no picture of {images} has both{why}")
    (first_name, first_path), (second_name, second_path) = candidates
    names, paths = (first_name, second_name), (str(first_path), str(second_path))
    return Contest(mode, names, paths, tuple(comparisons), tuple(failures), len(sources))


def _sources(sources: list[Path], images: str | os.PathLike[str]) -> tuple[dict[str, Picture], list[Failure]]:
    pictures: dict[str, Picture] = {}
    failures = []
    for path in sources:
        try:
            pictures[key_of(path, images)] = Picture(path, image_digest(decode_image(path)))
        except DecodeError as error:
            failures.append(Failure(str(path), error.message))
    return pictures, failures


def _captions(
    path: Path, images: Path, pictures: Mapping[str, Picture]
) -> tuple[dict[str, str | Picture], list[Failure]]:
    if path.is_dir():
        path = path / CAPTIONS
    if path.suffix == ".json":
        entries = [entry for entry in read_unified(path)[SECTION]["pairs"] if entry["caption"] is not None]
        captions = {entry["reference"]: entry["caption"] for entry in entries}
        digests = {entry["reference"]: entry["sha256"] for entry in entries}
    else:
        captions, digests = read_captions(path), _digests(path)
    found: dict[str, str | Picture] = {}
    failures = []
    for key, picture in pictures.items():
        given = next((name for name in (key, key.rpartition("/")[2]) if name in captions), None)
        if given is None:
            failures.append(Failure(key, "no caption"))
        elif digests.get(given, picture.digest) != picture.digest:
            failures.append(Failure(key, "its caption was made for another picture of that name"))
        else:
            found[key] = captions[given]
    return found, failures


def _digests(path: Path) -> dict[str, str]:
    """Digests of pictures in a captions file that has them; its lines are known to be objects."""
    with path.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    return {entry["file"]: entry["sha256"] for entry in entries if isinstance(entry.get("sha256"), str)}


def _drawn(path: Path, images: Path, pictures: Mapping[str, Picture]) -> tuple[dict[str, str | Picture], list[Failure]]:
    folder = path.parent if path.suffix == ".json" else path
    inner = folder / PICTURES
    if path.suffix == ".json" and not inner.is_dir():
        raise ConfigError("candidates", f"no folder {inner}; pass the folder of its pictures")
    pairing = find_pairs(inner if inner.is_dir() else folder, images)
    found: dict[str, str | Picture] = {}
    # The first of two pictures for one source; the pairing lists the other as a failure.
    for pair in reversed(pairing.pairs):
        found[pair.key] = Picture(pair.generated, image_digest(decode_image(pair.generated)))
    return found, list(pairing.failures)
