# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.learning.emoji_data OUT``: emoji in two styles as parquet, a second world to learn.

Fetches the npm packages ``emoji-datasource-google`` and ``emoji-datasource-twitter`` and writes, per vendor, the rows
of `verl_uae.data.schema`: ``OUT/google/train.parquet``, ``val.parquet`` and the same of ``twitter``, with the words
of all captions in ``OUT/words.json``. Both vendors hold the same names out. Nothing of this is part of the project:
the packages are MIT, and as their README states Google's pictures (Noto Emoji) are under the Apache License 2.0,
Twitter's (Twemoji) under Creative Commons Attribution 4.0.

A caption is made of what the package says of a name and of the colours of its picture: the colours that fill at least
a fifth of what is not white, then category, subcategory and name, each word once. Words that fewer than three names
of the training split share say nothing about any other name and are left out.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import os
import re
import shutil
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from verl_uae.cli import answered
from verl_uae.data.images import decode_image, encode_png, image_digest, to_tensor
from verl_uae.data.schema import make_row, write_parquet
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import published, write_json
from verl_uae.paths import argument_path
from verl_uae.scenes.dataset import PICTURE_PROMPT
from verl_uae.scenes.render import IMAGE_SIZE, SPLITS
from verl_uae.scenes.tokenizer import RESERVED

VERSION = "16.0.0"
INTEGRITY: dict[str, str] = {
    "google": "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "twitter": "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
}
"""Vendor -> SHA-512 of its archive, Base64, as the registry states it under ``dist.integrity``."""
REGISTRY = "https://registry.npmjs.org"

CATEGORIES: dict[str, str] = {
    "Smileys & Emotion": "smiley",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
    "Component": "symbol",
}
"""Category of the package -> its word."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (252, 205, 50),
    "green": (80, 160, 60),
    "blue": (50, 110, 220),
    "cyan": (100, 190, 240),
    "purple": (140, 80, 190),
    "pink": (240, 130, 170),
    "brown": (130, 85, 60),
    "gray": (140, 150, 155),
    "black": (45, 45, 45),
}
MAX_WORDS = 14
"""Longest caption: what the condition of the tiny decoder holds beside the chat template."""

_WHITE = (250, 250, 250)
_COLOUR_SHARE = 0.2
_MAX_COLOURS = 2
_SHARED_BY = 3
_HELD_OUT_ONE_IN = 6
_LARGEST_FILE = 16 * 2**20

_FILLERS = "a and at for in of on other the to with"
_VARIANTS = (
    "adult big black blue boy brown child crescent dark down downwards east eight eleven face facing female first five "
    "four full gibbous girl gray green grey heavy large last left leftwards light male man medium men mens new nine "
    "north number oclock older one orange people person pink pointing purple quarter red right rightwards seven sign "
    "six small south symbol ten thin thirty three twelve two up upwards waning waxing west white woman women "
    "womens yellow"
)
"""Words in which variants of one picture differ, with letters and what holds a digit: colour, number, hour, phase,
direction, size, gender and age."""
_PEOPLE = "people"
_MODIFIERS = "200D FE0F 2640 2642 27A1 1F3FB 1F3FC 1F3FD 1F3FE 1F3FF 1F468 1F469 1F9D1 1F466 1F467 1F9D2"
"""Code points in which variants differ: joiners, gender, direction, skin tone, and man, woman, boy, girl themselves."""
_LETTERS = range(0x1F1E6, 0x1F200)
_BLACK_FLAG = "1F3F4"


@dataclass(frozen=True, slots=True)
class Emoji:
    """One picture of one vendor, and what can be said of it."""

    name: str
    category: str
    """As the package has it."""
    colours: tuple[str, ...]
    """Of the picture, the larger first; keys of `COLOURS`."""
    kind: str
    """Word of the category."""
    detail: tuple[str, ...]
    """Further words of the vocabulary: of the subcategory, then of the name."""

    def caption(self, detail: Sequence[str] | None = None, colours: Sequence[str] | None = None) -> str:
        """Words in order, each once, cut to `MAX_WORDS`; all of them, or of colours and details only those given."""
        chosen = (self.colours if colours is None else colours), (self.detail if detail is None else detail)
        return " ".join(list(dict.fromkeys([*chosen[0], self.kind, *chosen[1]]))[:MAX_WORDS])

    def to_json(self) -> str:
        """The ground truth of a row."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Emoji:
        """What `to_json` wrote. Raises ``ValueError``: it is something else."""
        try:
            fields = json.loads(text)
            return cls(**{**fields, "colours": tuple(fields["colours"]), "detail": tuple(fields["detail"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"is no emoji: {error!r}") from error


# ---------------------------------------------------------------- the packages


def fetch(vendor: str, folder: Path, registry: str = REGISTRY) -> Path:
    """The archive of a vendor in a folder, downloaded unless it is there; its content is what `INTEGRITY` names.

    Raises:
        ConfigError: the registry is no http address or does not answer.
        DataError: the archive is another one.
    """
    name = f"emoji-datasource-{vendor}"
    path = folder / f"{name}-{VERSION}.tgz"
    if not path.is_file():
        url = f"{registry.rstrip('/')}/{name}/-/{path.name}"
        if not url.startswith(("https://", "http://")):
            raise ConfigError("--registry", f"must be an http address, got {registry!r}")
        folder.mkdir(parents=True, exist_ok=True)
        with published(path) as (part,):
            try:
                with urllib.request.urlopen(url, timeout=60) as answer, open(part, "wb") as file:
                    shutil.copyfileobj(answer, file)
            except OSError as error:
                raise ConfigError("--registry", f"{url} cannot be fetched: {error}") from error
            if (found := _integrity(part)) != INTEGRITY[vendor]:
                raise DataError(path, None, f"{url} has the SHA-512 {found}, not {INTEGRITY[vendor]}: nothing is kept")
    elif (found := _integrity(path)) != INTEGRITY[vendor]:
        raise DataError(path, None, f"has the SHA-512 {found}, not {INTEGRITY[vendor]}: remove it to fetch it again")
    return path


def _integrity(path: Path) -> str:
    """SHA-512 of a file, Base64."""
    digest = hashlib.sha512()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()


def read_archive(path: Path, vendor: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Records of ``emoji.json`` and the files of the pictures by name. Nothing is unpacked to disk.

    Raises:
        DataError: it is no archive of the vendor, or a file in it is larger than 16 MiB.
    """
    records: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    place = f"package/img/{vendor}/64/"
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                wanted = member.name == "package/emoji.json" or member.name.startswith(place)
                if not (wanted and member.isreg()):
                    continue
                if member.size > _LARGEST_FILE:
                    raise DataError(path, None, f"{member.name} has {member.size} bytes, at most {_LARGEST_FILE}")
                file = archive.extractfile(member)
                content = b"" if file is None else file.read()
                if member.name.startswith(place):
                    pictures[member.name.removeprefix(place)] = content
                else:
                    records = json.loads(content)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(path, None, f"is no archive of {vendor}'s emoji: {error}") from error
    if missing := [one["image"] for one in records if one["image"] not in pictures]:
        raise DataError(path, None, f"has no picture {missing[0]} of the {len(missing)} that its emoji.json names")
    if not records:
        raise DataError(path, None, "holds no package/emoji.json")
    return records, pictures


# ---------------------------------------------------------------- names


def split_words(text: str) -> list[str]:
    """Letters and digits of a text, lower case, as words."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


def families(records: Sequence[Mapping[str, Any]], digests: Sequence[Iterable[str]]) -> list[str]:
    """A family for each record, called by the least of its names: variants of one picture, held out together.

    Two records are of one family if their names are the same but for words such as colours, hours, directions and
    genders, if their code points share one that is no modifier, or if they have the same picture, as the flags of some
    islands have. What is joined to both joins them.

    Args:
        records: of ``emoji.json``.
        digests: of the pictures of each.
    """
    parent = list(range(len(records)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    owner: dict[str, int] = {}
    for number, (record, own) in enumerate(zip(records, digests, strict=True)):
        for key in {_name_key(record["name"]), *_code_keys(record["unified"]), *own}:
            if key in owner:
                parent[root(number)] = root(owner[key])
            else:
                owner[key] = number
    names: dict[int, str] = {}
    for number, record in enumerate(records):
        names[root(number)] = min(record["name"], names.get(root(number), record["name"]))
    return [names[root(number)] for number in range(len(records))]


def _name_key(name: str) -> str:
    words = set(split_words(name))
    kept = {word for word in words - {*_VARIANTS.split(), *_FILLERS.split()} if len(word) > 1 and word.isalpha()}
    return "name " + " ".join(sorted(kept or words))


def _code_keys(unified: str) -> set[str]:
    codes = unified.split("-")
    # A flag is spelt: its letters stand in other flags too, as the black flag does before those of regions.
    if all(int(code, 16) in _LETTERS for code in codes) or (codes[0] == _BLACK_FLAG and "E007F" in codes):
        return {unified}
    return set(codes) - set(_MODIFIERS.split()) or {_PEOPLE}


def split_of(family: str) -> str:
    """One family in six is of split "val", by SHA-256 of its name; the others are of "train"."""
    digest = hashlib.sha256(family.encode()).hexdigest()
    return "val" if int(digest[:16], 16) % _HELD_OUT_ONE_IN == 0 else "train"


def detail_words(record: Mapping[str, Any]) -> list[str]:
    """Words of subcategory and name, each once, without the category's word and fillers."""
    said = dict.fromkeys([*split_words(record["subcategory"]), *split_words(record["name"])])
    left_out = {*_FILLERS.split(), CATEGORIES[record["category"]]}
    return [word for word in said if word not in left_out]


def vocabulary(details: Iterable[Sequence[str]]) -> list[str]:
    """Every word a caption may hold: colours, categories, and what enough of the given names share; sorted."""
    counts = Counter(itertools.chain.from_iterable(set(words) for words in details))
    shared = {word for word, count in counts.items() if count >= _SHARED_BY and word not in RESERVED}
    return sorted(shared | set(COLOURS) | set(CATEGORIES.values()))


# ---------------------------------------------------------------- pictures


def small_picture(data: bytes, path: Path) -> Image.Image:
    """A picture of 32 x 32 pixels on white, averaged over boxes. Raises `DecodeError`: it does not decode."""
    return decode_image(data, path=path).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def main_colours(image: Image.Image) -> tuple[str, ...]:
    """At most two names of `COLOURS`, each nearest to a fifth of the pixels that are not nearest to white."""
    palette_C3 = np.array([*COLOURS.values(), _WHITE], dtype=np.float64)
    pixels_P13 = np.asarray(image, dtype=np.float64).reshape(-1, 1, 3)
    nearest_P = np.square(pixels_P13 - palette_C3).sum(-1).argmin(-1)
    # White comes last and is left out.
    found = np.bincount(nearest_P, minlength=len(COLOURS) + 1)[: len(COLOURS)]
    counts = Counter({name: int(count) for name, count in zip(COLOURS, found, strict=True) if count})
    return tuple(name for name, n in counts.most_common(_MAX_COLOURS) if n >= _COLOUR_SHARE * found.sum())


# ---------------------------------------------------------------- the data set


def write_dataset(out: Path, archives: Mapping[str, Path]) -> None:
    """Write rows and words; equal archives give equal rows.

    Args:
        out: folder, made if missing.
        archives: of the vendors.

    Raises:
        DataError: an archive cannot be used, or the vendors' names differ.
    """
    read = {vendor: read_archive(path, vendor) for vendor, path in archives.items()}
    records = next(iter(read.values()))[0]
    for vendor, (own, _) in read.items():
        if [one["name"] for one in own] != [one["name"] for one in records]:
            raise DataError(archives[vendor], None, f"has other names than {next(iter(archives))}'s")
    pictures = {
        vendor: [small_picture(files[one["image"]], archives[vendor]) for one in own]
        for vendor, (own, files) in read.items()
    }
    digests = zip(
        *([f"{vendor} {image_digest(image)}" for image in of] for vendor, of in pictures.items()), strict=True
    )
    splits = [split_of(family) for family in families(records, list(digests))]
    details = [detail_words(record) for record in records]
    words = vocabulary(detail for detail, split in zip(details, splits, strict=True) if split == "train")
    known = [[word for word in detail if word in words] for detail in details]
    for vendor, of in pictures.items():
        (out / vendor).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            chosen = [number for number, own in enumerate(splits) if own == split]
            rows = _rows(vendor, split, [(records[number], of[number], known[number]) for number in chosen])
            write_parquet(out / vendor / f"{split}.parquet", rows)
    write_json(out / "words.json", words)


def _rows(
    vendor: str, split: str, of: Sequence[tuple[Mapping[str, Any], Image.Image, Sequence[str]]]
) -> Iterator[dict[str, Any]]:
    for index, (record, image, detail) in enumerate(of):
        kind = CATEGORIES[record["category"]]
        emoji = Emoji(record["name"], record["category"], main_colours(image), kind, tuple(detail))
        row = make_row(
            encode_png(to_tensor([image], IMAGE_SIZE)[0]),
            index=index,
            split=split,
            sha256=image_digest(image),
            prompt=PICTURE_PROMPT,
            data_source=f"emoji_{vendor}",
            source=f"{vendor}/{record['image']}",
            size=image.size,
            caption=emoji.caption(),
        )
        row["reward_model"]["ground_truth"] = emoji.to_json()
        yield row


def prepare(out: Path, registry: str | None = None) -> None:
    """Fetch both packages into ``out``/packages and write the data set, unless it is there.

    The registry is the given one, that of the environment's ``NPM_CONFIG_REGISTRY``, or `REGISTRY`.
    """
    if not (out / "words.json").is_file():
        where = registry or os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY)
        write_dataset(out, {vendor: fetch(vendor, out / "packages", where) for vendor in INTEGRITY})


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set into a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.emoji_data", description=__doc__)
    parser.add_argument("out", type=argument_path, metavar="OUT")
    parser.add_argument("--registry", help=f"of npm packages (default: NPM_CONFIG_REGISTRY, else {REGISTRY})")
    args = parser.parse_args(argv)
    prepare(args.out, args.registry)
    for vendor in INTEGRITY:
        print(f"{args.out / vendor}")
    return 0


if __name__ == "__main__":
    raise SystemExit(answered(main))
