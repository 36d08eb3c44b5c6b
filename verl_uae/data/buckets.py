# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Aspect-ratio buckets: pictures of similar shape are trained at one size, so that little is cut off.

The rule is NovelAI's (github.com/NovelAI/novelai-aspect-ratio-bucketing): both sides are multiples of a step, and each
height gets the largest width that keeps the area within that of the base square. SDXL's multi-aspect training (arXiv
2307.01952, section 2.3) has the same idea with steps of 64.

Shape legend: H height, W width, pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import Sampler

from verl_uae.data.images import to_tensor
from verl_uae.errors import ConfigError
from verl_uae.seeding import generator

Item = TypeVar("Item")

HeightWidth = tuple[int, int]
"""(H, W), pixels."""

RESIZE_RULE = "cover-centre-bicubic"
"""Name of what `fit` does, for the keys of a cache."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes pictures are trained at: (H, W) of every bucket, by ascending H / W. Raises `ValueError`: no size, a
    side below 1, or sizes in another order."""

    sizes: tuple[HeightWidth, ...]

    def __post_init__(self) -> None:
        if not self.sizes or any(side < 1 for size in self.sizes for side in size):
            raise ValueError(f"at least one size with positive sides is needed, got {self.sizes}")
        ratios = _ratios(self.sizes)
        if any(before >= after for before, after in pairwise(ratios)):
            raise ValueError(f"buckets must have different H / W in ascending order, got {self.sizes}")

    @classmethod
    def around(cls, base: int, *, step: int, max_aspect: float = 2.0) -> Buckets:
        """All (H, W) on the grid of ``step`` with H W <= base^2 and no side longer than ``max_aspect`` times the other,
        less those that fit into another one of them.

        Args:
            base: side of a square, pixels; a multiple of ``step``.
            step: what both sides are multiples of, pixels: a multiple of VAE factor times patch size (16 for SD3.5).
            max_aspect: largest ratio of the sides, at least 1. Longer pictures go to the longest bucket and are cut.

        Raises:
            ConfigError: for an impossible argument.
        """
        if step < 1 or base < step or base % step:
            raise ConfigError("base", f"must be a positive multiple of step={step}, got {base}")
        if not 1.0 <= max_aspect < math.inf:
            raise ConfigError("max_aspect", f"must be a number from 1, got {max_aspect}")
        candidates: set[HeightWidth] = set()
        for short in range(step, base + 1, step):
            long = min(base * base // short, int(max_aspect * short)) // step * step
            candidates |= {(short, long), (long, short)}
        whole = {
            (height, width)
            for height, width in candidates
            if not any((h > height and w >= width) or (h >= height and w > width) for h, w in candidates)
        }
        return cls(tuple(sorted(whole, key=lambda size: size[0] / size[1])))

    @classmethod
    def single(cls, height: int, width: int | None = None) -> Buckets:
        """One bucket for all pictures; ``width`` is ``height`` where it is None."""
        return cls(((height, height if width is None else width),))

    @classmethod
    def from_config(cls, config: DictConfig) -> Buckets:
        """Those of pre-training and cold start, from a whole composed configuration."""
        decoder, pretrain = config.uae.decoder, config.uae.pretrain
        if not pretrain.buckets:
            return cls.single(decoder.height, decoder.width)
        return cls.around(decoder.height, step=pretrain.bucket_step, max_aspect=pretrain.max_aspect)

    def bucket_of(self, width: int, height: int) -> HeightWidth:
        """(H, W) of the bucket whose aspect ratio is closest, as a factor, to that of an upright picture of so many
        pixels. Raises `ValueError`: a side is not positive."""
        if width < 1 or height < 1:
            raise ValueError(f"a picture must have positive sides, got {width} x {height}")
        ratio, ratios = height / width, _ratios(self.sizes)
        above = min(bisect_left(ratios, ratio), len(ratios) - 1)
        below = max(above - 1, 0)
        # On either side of the geometric mean.
        return self.sizes[below if ratio * ratio < ratios[below] * ratios[above] else above]


def fit(img: Image.Image, size: HeightWidth) -> Tensor:
    """Bring an RGB picture to a bucket (H, W): scale to cover it, then cut the centre (`images.to_tensor`). The reward
    scales the source picture the same way. Returns (3, H, W), float32, in [0, 1]."""
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
        batch_size: items per batch of all ranks together, ``data.train_batch_size``.
        seed: names the orders.
        shuffle: False keeps the order of the data set: batches come in the order in which they are full.

    Raises:
        ConfigError: if ``batch_size`` is not positive or no bucket fills a batch.
    """

    def __init__(self, buckets: Sequence[HeightWidth], batch_size: int, *, seed: int = 0, shuffle: bool = True) -> None:
        if batch_size < 1:
            raise ConfigError("data.train_batch_size", f"must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.next_epoch = 0
        self._items: dict[HeightWidth, list[int]] = {}
        for item, (height, width) in enumerate(buckets):
            self._items.setdefault((height, width), []).append(item)
        self._total = len(buckets)
        if not len(self):
            raise ConfigError("data.train_batch_size", self._unfilled())
        named = json.dumps([self._total, batch_size, seed, shuffle])
        content = np.asarray(buckets, dtype=np.int32).tobytes()
        self.fingerprint = hashlib.sha256(named.encode() + content).hexdigest()

    def _unfilled(self) -> str:
        counts = sorted(((len(items), size) for size, items in self._items.items()), reverse=True)
        buckets = ", ".join(f"{count} of {height} x {width}" for count, (height, width) in counts[:5]) or "none"
        rest = f" and fewer in {len(counts) - 5} others" if len(counts) > 5 else ""
        remedy = f"lower it to {counts[0][0]} or give more data" if counts else "give some"
        what = (
            f"{self.batch_size} is more than any bucket (height x width) can fill with the {self._total} usable pairs"
        )
        return f"{what}, {buckets}{rest}; {remedy}"

    @property
    def dropped(self) -> int:
        """Items that no batch of an epoch holds."""
        return self._total - len(self)

    def __len__(self) -> int:
        """Items of an epoch: a multiple of ``batch_size``."""
        return sum(len(items) // self.batch_size * self.batch_size for items in self._items.values())

    def order(self, epoch: int) -> list[int]:
        """Items of an epoch, numbered from 0, in their order."""
        batches: list[list[int]] = []
        for bucket, items in self._items.items():
            if self.shuffle:
                items = _shuffled(items, self.seed, "bucket-items", epoch, *bucket)
            ends = range(self.batch_size, len(items) + 1, self.batch_size)
            batches += [items[end - self.batch_size : end] for end in ends]
        if self.shuffle:
            batches = _shuffled(batches, self.seed, "bucket-batches", epoch)
        else:
            batches.sort(key=lambda batch: batch[-1])
        return [item for batch in batches for item in batch]

    def __iter__(self) -> BucketIterator:
        """Iterator of the next epoch, with ``state_dict`` and ``load_state_dict``."""
        return BucketIterator(self)


class BucketIterator(Iterator[int]):
    """One epoch of a `BucketSampler`, and the place in it."""

    def __init__(self, sampler: BucketSampler) -> None:
        self.sampler = sampler
        self.epoch: int | None = None
        self.position = 0
        self._order: list[int] = []

    def __next__(self) -> int:
        if self.epoch is None:
            self._start(self.sampler.next_epoch)
        if self.position >= len(self._order):
            raise StopIteration
        self.position += 1
        return self._order[self.position - 1]

    def _start(self, epoch: int) -> None:
        self.epoch = epoch
        self.sampler.next_epoch = epoch + 1
        self._order = self.sampler.order(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, number of items given of it, and the name of the order."""
        epoch = self.sampler.next_epoch if self.epoch is None else self.epoch
        return {"epoch": epoch, "position": self.position, "fingerprint": self.sampler.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place; the epoch after it is the sampler's next one. Raises `ConfigError`: for the state of other
        data, batch size or seed."""
        if state["fingerprint"] != self.sampler.fingerprint:
            raise ConfigError("data", "the saved place is one of other rows, buckets, batch size or seed")
        self._start(int(state["epoch"]))
        self.position = int(state["position"])


@lru_cache(maxsize=16)
def _ratios(sizes: tuple[HeightWidth, ...]) -> tuple[float, ...]:
    return tuple(height / width for height, width in sizes)


def _shuffled(items: list[Item], *name: int | str) -> list[Item]:
    order = torch.randperm(len(items), generator=generator(*name)).tolist()
    return [items[place] for place in order]
