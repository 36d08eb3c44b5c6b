# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Two candidates over one folder of pictures: what is compared with what, what is missing, and what a judge is asked.

A prompt is a template in a file, filled in for one pair of candidates. Placeholders are ``$source``, ``$picture_a``,
``$picture_b`` for pictures, ``$caption_a``, ``$caption_b`` for texts and ``$nonce`` for a word that belongs to the
question; ``$$`` is a dollar sign. What is filled in is not searched for placeholders again. The nonce is a hash of all
that is judged, so no caption can hold it: it marks where captions begin and end, and a verdict counts only with it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from verl_uae.bench.draw import PICTURES
from verl_uae.bench.pairs import captions_by_key, find_pairs, image_files, key_of
from verl_uae.bench.results import CAPTIONS, Failure, named, read_text
from verl_uae.bench.unified import SECTION, read_unified
from verl_uae.data.captions import read_captions
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import ConfigError, DecodeError
from verl_uae.paths import expand
from verl_uae.text import parse_json

CAPTION, RECONSTRUCTION = "caption", "reconstruction"

VERSION = 1
"""Of the prompts in the package; part of their file names."""

#: Prompts of the package by the mode that they are for; the first is the default.
PACKAGED = {CAPTION: ("caption", "caption_blind"), RECONSTRUCTION: ("reconstruction",)}

REQUIRED = {CAPTION: {"caption_a", "caption_b"}, RECONSTRUCTION: {"source", "picture_a", "picture_b"}}

NONCE_LENGTH = 12
"""Hexadecimal digits."""

_PLACEHOLDER = re.compile(r"(\$\$|\$[a-z_]+)")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that decodes."""

    path: Path
    digest: str
    """`image_digest` of it."""


Content = str | Picture
"""What a candidate made: a caption, or a picture."""


def identity(content: Content) -> str:
    """Equal for equal captions, and for pictures with equal pixels."""
    return content if isinstance(content, str) else content.digest


@dataclass(frozen=True, slots=True)
class Comparison:
    """One source picture and what both candidates made of it."""

    key: str
    """Path of the source below its folder, with forward slashes."""
    source: Picture
    first: Content
    second: Content

    @property
    def identical(self) -> bool:
        """Whether there is nothing to choose between."""
        return identity(self.first) == identity(self.second)


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

    Raises:
        ConfigError: the names are equal, a path holds no candidate, or there is no picture to compare.
        DataError: a captions file or a result cannot be read.
    """
    sources = image_files(images)
    if not sources:
        raise ConfigError("images", f"no pictures in {images}")
    names, paths = zip(*map(named, (first, second)), strict=True)
    if names[0] == names[1]:
        raise ConfigError("candidates", f"two are named {names[0]!r}; name them with NAME=PATH")
    pictures: dict[str, Picture] = {}
    failures = []
    for path in sources:
        try:
            pictures[key_of(path, images)] = Picture(path, image_digest(decode_image(path)))
        except DecodeError as error:
            failures.append(Failure(str(path), error.message))
    # A source that does not decode is the fault of neither candidate, and is listed already.
    broken = {failure.what for failure in failures}
    sides = []
    for name, path in zip(names, paths, strict=True):
        contents, missing = _captions(path, pictures) if mode == CAPTION else _drawn(path, Path(images))
        failures += [Failure(f"{name}: {lost.what}", lost.reason) for lost in missing if lost.what not in broken]
        sides.append(contents)
    comparisons = tuple(
        Comparison(key, picture, sides[0][key], sides[1][key])
        for key, picture in pictures.items()
        if key in sides[0] and key in sides[1]
    )
    if not comparisons:
        why = f", for example {failures[0].what}: {failures[0].reason}" if failures else ""
        raise ConfigError("candidates", f"no picture of {images} has both{why}")
    return Contest(mode, names, (str(paths[0]), str(paths[1])), comparisons, tuple(failures), len(sources))


def _captions(path: Path, pictures: Mapping[str, Picture]) -> tuple[dict[str, Content], list[Failure]]:
    if path.is_dir():
        path = path / CAPTIONS
    if path.suffix == ".json":
        entries = [entry for entry in read_unified(path)[SECTION]["pairs"] if entry["caption"] is not None]
        captions = {entry["reference"]: entry["caption"] for entry in entries}
        digests = {entry["reference"]: entry["sha256"] for entry in entries}
    else:
        captions = read_captions(path)
        entries = [parse_json(line) for line in read_text(path).split("\n") if line.strip()]
        digests = {entry["file"]: entry["sha256"] for entry in entries if isinstance(entry.get("sha256"), str)}
    found: dict[str, Content] = {**captions_by_key(captions, list(pictures))}
    failures = [Failure(key, "no caption") for key in pictures if key not in found]
    for key, digest in captions_by_key(digests, list(found)).items():
        if digest != pictures[key].digest:
            del found[key]
            failures.append(Failure(key, "its caption was made for another picture of that name"))
    return found, failures


def _drawn(path: Path, images: Path) -> tuple[dict[str, Content], list[Failure]]:
    folder = path.parent if path.suffix == ".json" else path
    inner = folder / PICTURES
    if path.suffix == ".json" and not inner.is_dir():
        raise ConfigError("candidates", f"no folder {inner}; pass the folder of its pictures")
    pairing = find_pairs(inner if inner.is_dir() else folder, images)
    # The first of two pictures for one source; the pairing lists the other as a failure.
    drawn = {pair.key: pair.generated for pair in reversed(pairing.pairs)}
    return {key: Picture(file, image_digest(decode_image(file))) for key, file in drawn.items()}, [*pairing.failures]


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A template for one mode."""

    name: str
    """Name and version in the package, or the file."""
    mode: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def placeholders(self) -> set[str]:
        return {found[1:] for found in _PLACEHOLDER.findall(self.text) if found != "$$"}


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt filled in for one picture and one order of its candidates."""

    comparison: Comparison
    swapped: bool
    """Whether A is the second candidate."""
    parts: tuple[Content, ...]
    nonce: str | None
    """What the verdict has to name; None where the prompt does not ask for it."""


def load_prompt(source: str | None, mode: str) -> JudgePrompt:
    """A prompt of the package by name, or of a file; None is the default of the mode.

    Raises:
        ConfigError: it cannot be read, lacks a candidate or has an unknown placeholder.
    """
    name = PACKAGED[mode][0] if source is None else source
    try:
        if name in PACKAGED[mode]:
            name = f"{name}.v{VERSION}"
            text = resources.files(__package__).joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
        else:
            text = expand(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(PACKAGED[mode])
        raise ConfigError("--prompt", f"neither one of {known} nor a readable text file: {error}") from error
    prompt = JudgePrompt(name, mode, text)
    missing = REQUIRED[mode] - prompt.placeholders
    unknown = prompt.placeholders - REQUIRED[mode] - {"source", "nonce"}
    if missing or unknown:
        what = f"lacks ${min(missing)}" if missing else f"has an unknown placeholder ${min(unknown)}"
        raise ConfigError("--prompt", f"{name} {what}, for mode {mode}")
    return prompt


def ask(prompt: JudgePrompt, comparison: Comparison, swapped: bool) -> Question:
    """The question for one order of the candidates of a picture."""
    a, b = (comparison.second, comparison.first) if swapped else (comparison.first, comparison.second)
    judged = (prompt.text, identity(comparison.source), identity(a), identity(b))
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in judged]
    nonce = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:NONCE_LENGTH]
    kind = "caption" if prompt.mode == CAPTION else "picture"
    filling: dict[str, Content] = {
        "$$": "$",
        "$source": comparison.source,
        f"${kind}_a": a,
        f"${kind}_b": b,
        "$nonce": nonce,
    }
    # Every other piece is a placeholder.
    pieces = [filling[piece] if at % 2 else piece for at, piece in enumerate(_PLACEHOLDER.split(prompt.text))]
    parts: list[Content] = []
    for piece in pieces:
        if isinstance(piece, str) and parts and isinstance(parts[-1], str):
            parts[-1] += piece
        elif piece != "":
            parts.append(piece)
    return Question(comparison, swapped, tuple(parts), nonce if "nonce" in prompt.placeholders else None)
