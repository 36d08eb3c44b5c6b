# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Emoji as a world of the tiny models, and what can be had without learning: the nearest picture of the training split.

Shapes: N pictures of a split, M held-out ones, V words, H = W = 32 pixels.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.learning.emoji_data import Emoji
from verl_uae.data.images import decode_image, to_tensor
from verl_uae.errors import DataError
from verl_uae.scenes.joint_training import World
from verl_uae.scenes.render import IMAGE_SIZE

ABSTRACT = ("Symbols", "Flags")
"""Categories whose pictures are signs; those of the others show things."""


@dataclass(frozen=True, slots=True)
class WordMix:
    """A distribution of captions of an emoji, by the words they hold; the word of the category always stands.

    With probability `bare` nothing else, with probability `full` every word, otherwise each independently with
    probability `partial`.
    """

    bare: float
    full: float
    partial: float = 0.5

    def sample(self, emoji: Emoji, rng: random.Random) -> str:
        """Draw one caption."""
        u = rng.random()
        if u < self.bare:
            return emoji.caption(detail=(), colours=())
        if u < self.bare + self.full:
            return emoji.caption()
        colours, detail = ([w for w in of if rng.random() < self.partial] for of in (emoji.colours, emoji.detail))
        return emoji.caption(detail, colours)


CAPTIONER_MIX = WordMix(bare=0.4, full=0.2)
"""What the captioner imitates: mostly under-descriptive, so that RL has room."""
DECODER_MIX = WordMix(bare=0.1, full=0.6)
"""What the decoder is shown: mostly every word, so that detail is rewarded when it is stated."""


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of one file."""

    emoji: list[Emoji]
    images_N3HW: torch.Tensor
    """uint8."""

    @property
    def pictures_N3HW(self) -> torch.Tensor:
        """In [0, 1]."""
        return self.images_N3HW.float() / 255

    @property
    def captions(self) -> list[str]:
        """Every word of each."""
        return [emoji.caption() for emoji in self.emoji]

    @property
    def abstract_N(self) -> torch.Tensor:
        """Which of them are signs."""
        return torch.tensor([emoji.category in ABSTRACT for emoji in self.emoji])


def read_split(data: Path, vendor: str, split: str) -> Split:
    """Rows that `emoji_data` wrote.

    Raises:
        DataError: the file is missing or holds other rows.
    """
    path = data / vendor / f"{split}.parquet"
    try:
        rows = pq.read_table(path, columns=["images", "reward_model"]).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(path, None, f"is no file of emoji: {error}") from error
    emoji, images = [], []
    for number, row in enumerate(rows):
        try:
            emoji.append(Emoji.from_json(row["reward_model"]["ground_truth"]))
        except ValueError as error:
            raise DataError(path, number, str(error)) from error
        images.append(decode_image(row["images"][0]["bytes"], path=path, row=number))
    return Split(emoji, (to_tensor(images, IMAGE_SIZE) * 255).round().to(torch.uint8))


def emoji_world(data: Path, vendor: str) -> World:
    """The training split of one vendor, every picture equally likely; the codec is trained on it too."""
    train = read_split(data, vendor, "train")
    words = tuple(json.loads((data / "words.json").read_text(encoding="utf-8")))
    everything = [range(len(train.emoji))]
    mixes = DECODER_MIX.sample, CAPTIONER_MIX.sample
    return World(words, train.emoji, train.images_N3HW, everything, *mixes, codec_pictures=train.pictures_N3HW * 2 - 1)


def nearest_by_words(train: Split, captions: Sequence[str]) -> torch.Tensor:
    """The training picture whose caption is nearest to each caption, (M, 3, H, W) in [0, 1].

    Nearest is the largest cosine of words, each weighted by the logarithm of its rarity; the first of equals.
    """
    known = [set(text.split()) for text in train.captions]
    counts = Counter(word for words in known for word in words)
    column = {word: number for number, word in enumerate(sorted(counts))}
    weight = {word: math.log(len(known) / count) for word, count in counts.items()}

    def vectors(texts: Sequence[set[str]]) -> torch.Tensor:
        found = torch.zeros(len(texts), len(column))
        for row, words in enumerate(texts):
            for word in words & column.keys():
                found[row, column[word]] = weight[word]
        return torch.nn.functional.normalize(found, dim=1)

    similarity_MN = vectors([set(text.split()) for text in captions]) @ vectors(known).T
    return train.pictures_N3HW[similarity_MN.argmax(1)]


def nearest_by_pixels(train: Split, source_M3HW: torch.Tensor) -> torch.Tensor:
    """The training picture with the least squared error to each source: the best of all that could be looked up."""
    pictures_N3HW = train.pictures_N3HW
    return pictures_N3HW[torch.cdist(source_M3HW.flatten(1), pictures_N3HW.flatten(1)).argmin(1)]
