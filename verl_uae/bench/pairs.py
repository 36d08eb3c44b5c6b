# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which generated picture belongs to which reference: the rule of UAE's Unified-Bench scorer.

The scorer goes through the generated pictures and drops what it cannot pair or read. Here each of those is a `Failure`
with its reason, and so is a reference that nothing was generated for, which the scorer does not notice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_uae.bench.results import Failure
from verl_uae.data.captions import is_apple_double, match_captions
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import ConfigError, DecodeError
from verl_uae.text import fitting_name

#: Endings that the scorer takes for pictures, in lower case. ``.tif`` is not among them.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tiff", ".webp"})

PREFIX = "recon_"
"""Of the name of a reconstruction."""


def recon_name(stem: str) -> str:
    """Name of the reconstruction of a picture, by the stem of the picture's name: one that every file system takes."""
    return fitting_name(PREFIX + stem, ".png")


@dataclass(frozen=True, slots=True)
class PicturePair:
    """A generated picture and its reference; both decode."""

    generated: Path
    reference: Path
    key: str
    """Path of the reference below its folder, with forward slashes; names the pair in caption files."""
    digest: str
    """`image_digest` of the reference."""

    @property
    def name(self) -> str:
        """File name of the generated picture, which names the pair in results."""
        return self.generated.name


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs of two folders."""

    pairs: tuple[PicturePair, ...]
    unpaired: tuple[str, ...]
    """Names of generated pictures without reference, or in a pair that does not decode."""
    failures: tuple[Failure, ...]


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Pictures of a folder and all folders below it, in the order of their paths as text; ConfigError without it."""
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError("folder", f"{root} is not a folder")
    files = (path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    return sorted((path for path in files if not is_apple_double(path.name)), key=str)


def match(name: str, references: Sequence[Path]) -> Path | None:
    """The reference of a generated picture, by name alone.

    The first of equal name; else the one that makes a name with an escape or a digest by `recon_name`; else, in the
    order given, the first whose stem equals that of the generated picture, with or without ``recon_`` before it.
    """
    stem = os.path.splitext(name)[0]
    rules: list[Callable[[Path], bool]] = [lambda path: path.name == name]
    if "~" in name or "\\" in name:
        rules.append(lambda path: name == recon_name(path.stem))
    rules.append(lambda path: stem in (path.stem, PREFIX + path.stem))
    return next((path for rule in rules for path in references if rule(path)), None)


def find_pairs(
    generated: str | os.PathLike[str],
    references: str | os.PathLike[str],
    reasons: Mapping[str, str] | None = None,
) -> Pairing:
    """Pair two folders.

    A name that occurs twice among the generated pictures has one value in the scorer's result, that of the last; the
    others are failures here. Two pictures of one reference are both scored, as there, and are a failure as well,
    since that reference counts twice.

    Args:
        reasons: why nothing was generated for a reference, by its `PicturePair.key`, where that is known.

    Raises:
        ConfigError: one of them is not a folder, has no pictures, or lies in the other.
    """
    inner, outer = sorted((Path(generated).resolve(), Path(references).resolve()), key=lambda path: -len(path.parts))
    if inner != outer and inner.is_relative_to(outer):
        raise ConfigError("folder", f"{inner} lies in {outer}, so its pictures would count on both sides")
    drawn, originals = image_files(generated), image_files(references)
    for folder, files in ((generated, drawn), (references, originals)):
        if not files:
            raise ConfigError("folder", f"no pictures in {folder}")
    last = {path.name: path for path in drawn}
    failures = [
        Failure(str(path), f"another generated picture has the same name: {last[path.name]}")
        for path in drawn
        if last[path.name] is not path
    ]
    pairs: list[PicturePair] = []
    unpaired: list[str] = []
    used: dict[Path, str] = {}
    for name, path in last.items():
        reference = match(name, originals)
        if reference is None:
            failures.append(Failure(str(path), "no reference of that name"))
            unpaired.append(name)
            continue
        if reference in used:
            failures.append(Failure(str(path), f"its reference {reference} is paired with {used[reference]} too"))
        used[reference] = name
        decoded = reference
        try:
            digest = image_digest(decode_image(reference))
            decoded = path
            decode_image(path)
            pairs.append(PicturePair(path, reference, key_of(reference, references), digest))
        except DecodeError as error:
            failures.append(Failure(str(decoded), error.message))
            unpaired.append(name)
    for reference in originals:
        if reference not in used:
            reason = (reasons or {}).get(key_of(reference, references), "nothing was generated for it")
            failures.append(Failure(str(reference), reason))
    return Pairing(tuple(pairs), tuple(unpaired), tuple(failures))


def key_of(reference: Path, folder: str | os.PathLike[str]) -> str:
    """See `PicturePair.key`."""
    return reference.relative_to(folder).as_posix()


def captions_by_key(captions: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    """Key -> caption, by path or else by file name; how names are compared: `match_captions`."""
    found, unused = match_captions(captions, keys)
    by_name, _ = match_captions({name: captions[name] for name in unused}, {key.rpartition("/")[2] for key in keys})
    texts = {key: found.get(key, by_name.get(key.rpartition("/")[2])) for key in keys}
    return {key: text for key, text in texts.items() if text is not None}
