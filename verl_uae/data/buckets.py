# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Aspect-ratio buckets: pictures of similar shape are trained at one size, so that little is cut off.

The sizes follow NovelAI's rule (github.com/NovelAI/novelai-aspect-ratio-bucketing), which SDXL's multi-aspect training
(arXiv 2307.01952, section 2.3) uses with steps of 64: both sides are multiples of a step, and the area comes as close
to that of the base square as it can without exceeding it.

Shape legend: H height, W width, pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Sampler

from verl_uae.data.images import to_tensor
from verl_uae.errors import ConfigError
from verl_uae.seeding import generator

HeightWidth = tuple[int, int]
"""(H, W), pixels."""

RESIZE_RULE = "cover-centre-bicubic"
"""Name of what `fit` does, for the keys of a cache."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes pictures are trained at.

    Attributes:
        sizes: (H, W) of every bucket, by ascending H / W; no two are equal.
    """

    sizes: tuple[HeightWidth, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"buckets must be different sizes, at least one, got {self.sizes}")
        if any(side < 1 for size in self.sizes for side in size):
            raise ValueError(f"sides must be positive, got {self.sizes}")

    @classmethod
    def around(cls, base: int, *, step: int, max_aspect: float = 2.0) -> Buckets:
        """Buckets of at most the area of a square.

        For every height that is a multiple of ``step``, the largest width that is one too and keeps H W <= base^2; and
        the same with the sides exchanged. Sizes of more than ``max_aspect`` are left out, and so is a size for which
        another one has the same width and more height, or the same height and more width.

        Args:
            base: side of the square, pixels; a multiple of ``step``.
            step: what both sides are multiples of, pixels: a multiple of VAE factor times patch size (16 for SD3.5).
            max_aspect: largest ratio of the sides, at least 1. Longer pictures go to the longest bucket and are cut.

        Raises:
            ConfigError: for an impossible argument.
        """
        if step < 1 or base < step or base % step:
            raise ConfigError("base", f"must be a positive multiple of step={step}, got {base}")
        if not max_aspect >= 1.0:
            raise ConfigError("max_aspect", f"must be at least 1, got {max_aspect}")
        found = {(base, base)}
        for side in range(step, base + 1, step):
            other = base * base // side // step * step
            if other <= max_aspect * side:
                found |= {(side, other), (other, side)}
        whole = {
            (height, width)
            for height, width in found
            if not any((h > height and w >= width) or (h >= height and w > width) for h, w in found)
        }
        return cls(tuple(sorted(whole, key=lambda size: size[0] / size[1])))

    @classmethod
    def single(cls, height: int, width: int | None = None) -> Buckets:
        """One bucket for all pictures; ``width`` is ``height`` where it is None."""
        return cls(((height, height if width is None else width),))

    def bucket_of(self, width: int, height: int) -> HeightWidth:
        """(H, W) of the bucket whose aspect ratio is closest to that of a picture, as a factor.

        Args:
            width, height: of the upright picture, pixels.

        Raises:
            ValueError: if a side is not positive.
        """
        if width < 1 or height < 1:
            raise ValueError(f"a picture must have positive sides, got {width} x {height}")
        return _closest(self.sizes, width, height)


def fit(img: Image.Image, size: HeightWidth) -> Tensor:
    """Bring a picture to a bucket: scale to cover it, then cut the centre (bicubic, `images.to_tensor`).

    Nothing is stretched, and at most one side is cut. The reward scales the source picture the same way.

    Args:
        img: RGB picture.
        size: (H, W).

    Returns:
        Tensor (3, H, W), float32, in [0, 1].

    Raises:
        ValueError: for a picture that is not RGB.
    """
    return to_tensor([img], size)[0]


class BucketSampler(Sampler[int]):
    """Every ``batch_size`` consecutive items are of one bucket; for a ``StatefulDataLoader``.

    In an epoch the items of each bucket are shuffled and cut into batches, and the batches are shuffled. What does not
    fill a batch of its bucket is dropped for this epoch (`dropped` items, other ones in every epoch). The order is a
    function of seed and epoch alone. An epoch begins when the first item of an iterator is asked for, so iterators
    that are made and thrown away (as ``StatefulDataLoader`` does) cost none.

    The iterator has the state. It resumes at any place, and refuses the state of another order.

    Args:
        buckets: bucket of every item, in the order of the data set; equal values are one bucket.
        batch_size: items per batch of all ranks together.
        seed: names the orders.
        shuffle: False keeps the order of the data set: batches come in the order in which they are full.

    Raises:
        ConfigError: if ``batch_size`` is not positive or no bucket fills a batch.
    """

    def __init__(
        self, buckets: Sequence[HeightWidth], batch_size: int, *, seed: int = 0, shuffle: bool = True
    ) -> None:
        raise NotImplementedError

    @property
    def dropped(self) -> int:
        """Items that no batch of an epoch holds."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Items of an epoch: a multiple of ``batch_size``."""
        raise NotImplementedError

    def order(self, epoch: int) -> list[int]:
        """Items of an epoch, numbered from 0, in their order."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        """Iterator of the next epoch, with ``state_dict`` and ``load_state_dict``."""
        raise NotImplementedError
