# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of picture and caption, what the supervised stages learn from: of rows, or streamed from webdataset tar shards
in whole batches of one bucket, with an exact place to resume at."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from verl_uae.data.buckets import Buckets, HeightWidth
from verl_uae.data.captions import caption_problem
from verl_uae.data.frame import Row
from verl_uae.data.images import decode_image, upright_size
from verl_uae.data.limits import DEFAULT_LIMITS, ImageLimits
from verl_uae.data.rows import BadItem, CheckSettings, ItemList, RowDoor, Size, load_rows, quarantine_path, sift
from verl_uae.data.schema import Message
from verl_uae.data.tar import PICTURES, DamagedShard, Sample, expand_shards, read_samples, webdataset
from verl_uae.errors import ConfigError, DataError, DecodeError
from verl_uae.paths import expand
from verl_uae.seeding import generator
from verl_uae.text import decode_text, encodable, parse_json, printable

logger = logging.getLogger(__name__)

_DIGEST = re.compile("[0-9a-f]{64}")
_NAMED = 200
"""Most characters of a name in a message."""
_ENOUGH = 100
"""Samples before a share of bad ones means anything; it is looked at after each epoch too."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture, still encoded, and its caption. Small and picklable: made on the driver, decoded on a rank."""

    image: bytes
    """Encoded picture; empty where it has become unreadable since it was checked, see ``problem``."""
    caption: str
    digest: str | None
    """`images.image_digest` of the decoded picture as the data says, or None where it says nothing."""
    width: int
    """Of the upright picture, pixels: what the bucket is chosen by. It may be what the data claims, see `PairRows`."""
    height: int
    file: str
    """Data file or shard, for messages."""
    row: int
    """Zero-based row of the file, or number of the sample in its shard."""
    problem: str | None = None
    """Why ``image`` is empty."""
    prompt: tuple[Message, ...] | None = None
    """What the captioner is asked, with one ``<image>``; None where the data do not say."""

    @property
    def name(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, row {self.row}"

    @property
    def content_key(self) -> str:
        """SHA-256, in hex, of the encoded bytes: names the picture in a cache without decoding it."""
        return hashlib.sha256(self.image).hexdigest()

    @property
    def identity(self) -> str:
        """What names the picture in seeds: ``digest``, or ``content_key`` without one."""
        return self.digest or self.content_key

    def decode(self, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
        """The upright RGB picture. Raises `DecodeError`: naming file and row, if it does not decode within the
        limits."""
        if self.problem is not None:
            raise DecodeError(self.file, self.row, self.problem)
        return decode_image(self.image, limits=limits, path=self.file, row=self.row)


class PairRows(Dataset[Pair]):
    """Pairs from parquet or JSON files in the row schema of `data.schema`; the caption is ``extra_info.caption``.

    Every row is checked once, with the checks and settings of `UAEDataset`. A row without a caption is a bad row. Use
    it with a `buckets.BucketSampler` over `sizes` and ``collate_fn=list``.

    Args:
        files: their paths.
        settings: of the check; ``verify_images`` also says where `sizes` come from: ``full`` the decoded picture,
            ``header`` its claims and EXIF orientation, ``off`` the row's own ``width`` and ``height`` where it has
            them, else as ``header``. A wrong size costs a worse crop and nothing else.
        max_samples: rows to use, all where it is not positive; drawn with ``shuffle`` and ``seed`` as verl does.

    Attributes:
        sizes: (W, H) of every pair, upright, pixels.
        bad: rows that are left out; also in ``settings.quarantine_dir``.

    Raises `DataError`: for an unreadable file, too many bad rows, or no usable one.
    """

    def __init__(
        self,
        files: str | PathLike[str] | Sequence[str | PathLike[str]],
        settings: CheckSettings | None = None,
        *,
        max_samples: int = -1,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        paths = [files] if isinstance(files, str | PathLike) else list(files)
        if not paths:
            raise DataError("<no file>", None, "at least one data file is needed")
        names = tuple(str(path) for path in paths)
        self.settings = settings or CheckSettings()
        self.door = RowDoor(tuple(str(expand(name)) for name in names), tuple(map(printable, names)), self.settings)
        self.frame = load_rows(self.door, max_samples, shuffle=shuffle, seed=seed)
        good, self.bad = sift(self.door, self.frame.chunks(), partial(inspect_pair, self.door))
        self.sizes = [size for _, size in good]
        self.door.judge(len(self.frame), self.bad)
        if self.bad:
            self.frame = self.frame.select(item for item, _ in good)
        logger.info("%s: %d pairs (%s)", ", ".join(self.door.names), len(good), self.settings.verify_images)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, item: int) -> Pair:
        """A pair; where its picture file has become unreadable, one with a ``problem``, which costs that sample."""
        row = self.frame[item]
        file, number = self.door.origin(row)
        info, (width, height) = row["extra_info"], self.sizes[item]
        try:
            image, problem = self.door.encoded(row, row[self.door.image_key][0]), None
        except DataError as error:
            image, problem = b"", error.message
        prompt = tuple(row[self.door.prompt_key])
        return Pair(image, info["caption"].strip(), stated_digest(info), width, height, file, number, problem, prompt)


def stated_digest(info: Mapping[str, Any]) -> str | None:
    """The `images.image_digest` that data state under ``sha256``; anything else in its place counts as none."""
    digest = info.get("sha256")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def inspect_pair(door: RowDoor, row: Row) -> Size | str:
    """(W, H) of the picture of a row, or the reason why it is no pair."""
    sizes = door.inspect(row)
    if isinstance(sizes, str):
        return sizes
    if len(sizes) > 1:
        return f"column {door.image_key}: a pair has one picture, got {len(sizes)}"
    info = row.get("extra_info") or {}
    if (problem := caption_problem(info.get("caption"))) is not None:
        return f"column extra_info: {problem}"
    if sizes[0] != (0, 0):
        return sizes[0]
    width, height = info.get("width"), info.get("height")
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        return (width, height)
    try:
        return upright_size(door.encoded(row, row[door.image_key][0]), limits=door.settings.image_limits)
    except DataError as error:
        return f"column {door.image_key}: {error.message}"


# ------------------------------------------------------------ shards


@dataclass(slots=True)
class ShardCounts:
    """What an iterator has seen since the run began, over all epochs."""

    good: int = 0
    bad: int = 0
    """Samples that could not be used."""
    damaged: int = 0
    """Shards whose rest was lost."""
    dropped: int = 0
    """Samples that filled no batch when ``epochs`` was over."""


class PairShards(IterableDataset[list[Pair]]):
    """Batches of pairs from tar shards; for ``StatefulDataLoader(shards, batch_size=None)``.

    A sample is an image entry and a caption entry of the same key (``.txt``, or ``.json`` with a field ``caption``; its
    ``sha256`` is the pair's digest). Samples wait in one buffer per bucket, and a full buffer is a batch. The order of
    the shards is named by seed and epoch; inside a shard samples keep their order.

    The stream has no end unless ``epochs`` is given: one epoch goes into the next, and what waits in the buffers waits
    on, so nothing is dropped. At the end of ``epochs`` what fills no batch is dropped and counted.

    State: epoch, shard, number of samples read of it, and (shard, number) of what waits, which is read again on load.
    Workers of a loader share out the shards; the state is for as many workers.

    A bad sample costs itself, a damaged or cut shard the rest of it; both are counted, logged and listed. Of a picture
    its claims are checked; what does not decode is found by the rank that decodes it.

    Args:
        shards: glob or brace pattern, or URL with braces, or several; ``urls`` are those, in the order of their names.
        batch_size: pairs per batch of all ranks together.
        shuffle: False keeps shards in the order of their names.
        epochs: passes over the data; None: no end.
        settings: ``max_bad_share``, ``quarantine_dir``, ``log_first`` and ``image_limits`` are used.

    Raises `ConfigError`: for an impossible argument or a missing package; `DataError`: for a pattern without files or a
    URL that is refused; while iterating, for too many bad samples.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        buckets: Buckets,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        settings: CheckSettings | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError("data.train_batch_size", f"must be at least 1, got {batch_size}")
        if epochs is not None and epochs < 1:
            raise ConfigError("epochs", f"must be at least 1 or none, got {epochs}")
        webdataset()
        self.urls = expand_shards([shards] if isinstance(shards, str) else shards)
        self.buckets = buckets
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epochs = epochs
        self.settings = settings or CheckSettings()

    def __iter__(self) -> ShardIterator:
        """Iterator from epoch 0, with ``state_dict``, ``load_state_dict`` and ``counts``."""
        worker = get_worker_info()
        part, parts = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if len(self.urls) < parts:
            raise ConfigError("data.dataloader_num_workers", f"{parts} workers share {len(self.urls)} shards")
        return ShardIterator(self, part, parts)

    def order(self, epoch: int) -> list[str]:
        """The shards of an epoch, numbered from 0, in their order."""
        if not self.shuffle:
            return list(self.urls)
        places = torch.randperm(len(self.urls), generator=generator(self.seed, "shards", epoch)).tolist()
        return [self.urls[place] for place in places]


class ShardIterator(Iterator[list[Pair]]):
    """The stream of a `PairShards`, or a worker's part of it, and the place in it."""

    def __init__(self, shards: PairShards, part: int = 0, parts: int = 1) -> None:
        self.shards = shards
        self.counts = ShardCounts()
        self._part, self._parts = part, parts
        named = [shards.urls, shards.buckets.sizes, shards.batch_size, shards.seed, shards.shuffle, part, parts]
        self._fingerprint = hashlib.sha256(json.dumps(named).encode()).hexdigest()
        self._waiting: dict[HeightWidth, list[Pair]] = {size: [] for size in shards.buckets.sizes}
        folder = shards.settings.quarantine_dir
        self._listed = None if folder is None else ItemList(quarantine_path(folder, ["shards", *shards.urls]))
        self._last_bad: BadItem | None = None
        self._good_before = 0
        self._go_to(epoch=0, shard=0, number=0)

    def __next__(self) -> list[Pair]:
        for size, pair in self._pairs:
            waiting = self._waiting[size]
            waiting.append(pair)
            if len(waiting) == self.shards.batch_size:
                self._waiting[size] = []
                return waiting
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """The place, as plain numbers and texts."""
        return {
            "fingerprint": self._fingerprint,
            "epoch": self._epoch,
            "shard": self._shard,
            "number": self._number,
            "good_before": self._good_before,
            "waiting": [(pair.file, pair.row) for pairs in self._waiting.values() for pair in pairs],
            "counts": asdict(self.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place and read again what waited there. Raises `ConfigError`: for the state of other shards, buckets,
        batch size, seed or number of workers; `DataError`: if a shard is no longer what it was."""
        if state["fingerprint"] != self._fingerprint:
            raise ConfigError("data", "the saved place is one of other shards, buckets, batch size, seed or workers")
        self.counts = ShardCounts(**state["counts"])
        self._good_before = state["good_before"]
        pairs = self._read_again([(str(url), int(number)) for url, number in state["waiting"]])
        for waiting in self._waiting.values():
            waiting.clear()
        for pair in pairs:
            self._waiting[self.shards.buckets.bucket_of(pair.width, pair.height)].append(pair)
        self._go_to(state["epoch"], state["shard"], state["number"])

    def _go_to(self, epoch: int, shard: int, number: int) -> None:
        self._epoch, self._shard, self._number = epoch, shard, number
        self._pairs = self._good_pairs()

    def _good_pairs(self) -> Iterator[tuple[HeightWidth, Pair]]:
        """Good samples from the place on, until ``epochs`` are over, each with its bucket."""
        limits = self.shards.settings.image_limits
        while self._epoch != self.shards.epochs:
            for url in self.shards.order(self._epoch)[self._part :: self._parts][self._shard :]:
                try:
                    samples = read_samples(url, limits.max_bytes)
                    skipped = sum(1 for _ in islice(samples, self._number))
                    if skipped < self._number:
                        reason = f"has changed: {skipped} samples, {self._number} were read before"
                        raise DataError(url, None, reason)
                    for sample in samples:
                        self._number = sample.number + 1
                        pair = pair_of(sample, url, limits)
                        if isinstance(pair, Pair):
                            self.counts.good += 1
                            yield self.shards.buckets.bucket_of(pair.width, pair.height), pair
                        else:
                            self.counts.bad += 1
                            self._leave_out(BadItem(url, sample.number, pair))
                except (DamagedShard, OSError) as error:
                    self.counts.damaged += 1
                    reason = f"the shard is lost from sample {self._number} on: {type(error).__name__}: {error}"
                    self._leave_out(BadItem(url, None, reason))
                self._shard, self._number = self._shard + 1, 0
            if self.counts.good == self._good_before:
                reason = f"no usable sample in {self._shard} shards; last: {self._last_bad}"
                raise DataError(self.shards.urls[0], None, reason)
            self._check_share()
            self._good_before = self.counts.good
            self._epoch, self._shard = self._epoch + 1, 0
        self.counts.dropped += sum(map(len, self._waiting.values()))
        self._waiting = {size: [] for size in self._waiting}

    def _leave_out(self, item: BadItem) -> None:
        self._last_bad = item
        left_out = self.counts.bad + self.counts.damaged
        if left_out <= self.shards.settings.log_first:
            logger.warning("left out: %s", item)
        if self._listed is not None:
            self._listed.add(item)
        if self.counts.good + left_out >= _ENOUGH:
            self._check_share()

    def _check_share(self) -> None:
        left_out = self.counts.bad + self.counts.damaged
        url, seen = self.shards.urls[0], self.counts.good + left_out
        self.shards.settings.check_share(url, left_out, seen, "samples or rests of shards", f"last: {self._last_bad}")

    def _read_again(self, places: Sequence[tuple[str, int]]) -> list[Pair]:
        limits = self.shards.settings.image_limits
        pairs: dict[tuple[str, int], Pair] = {}
        for url in dict.fromkeys(url for url, _ in places):
            numbers = {number for other, number in places if other == url}
            try:
                for sample in islice(read_samples(url, limits.max_bytes), max(numbers) + 1):
                    pair = pair_of(sample, url, limits) if sample.number in numbers else None
                    if isinstance(pair, Pair):
                        pairs[url, sample.number] = pair
            except (DamagedShard, OSError) as error:
                raise DataError(url, None, f"cannot be read again: {error}") from error
        if missing := [place for place in places if place not in pairs]:
            raise DataError(missing[0][0], missing[0][1], "the sample that waited for its batch is gone")
        return [pairs[place] for place in places]


def pair_of(sample: Sample, url: str, limits: ImageLimits) -> Pair | str:
    """The pair of a sample, or the reason why it has none."""
    if sample.problem is not None:
        return sample.problem
    key, listing = encodable(sample.key[:_NAMED]), f"found: {', '.join(f'.{ending}' for ending in sample.endings)}"
    pictures = [suffix for suffix in PICTURES if suffix in sample.entries]
    if len(pictures) != 1:
        return f"{key}: {len(pictures)} entries of {', '.join(PICTURES)}, one is needed; {encodable(listing)}"
    try:
        about = parse_json(decode_text(sample.entries["json"])) if "json" in sample.entries else None
        text = decode_text(sample.entries["txt"]) if "txt" in sample.entries else None
    except ValueError as error:
        return f"{key}: text entry: {error}"
    fields = about if isinstance(about, dict) else {}
    caption = fields.get("caption") if text is None else text
    problem = caption_problem(caption)
    if problem is not None or not isinstance(caption, str):
        if text is None:
            named = ", ".join(str(name)[:_NAMED] for name in sorted(fields)[:8]) or "none"
            listing += f", with the fields {named}" if about is not None else ""
            listing = f"; it is the entry .txt, or the field caption of .json; {listing}"
        return f"{key}: {problem}{encodable(listing) if text is None else ''}"
    image = sample.entries[pictures[0]]
    try:
        width, height = upright_size(image, limits=limits)
    except DataError as error:
        return f"{key}: {error.message}"
    return Pair(image, caption.strip(), stated_digest(fields), width, height, url, sample.number)


def check_shard(path: Path, limits: ImageLimits) -> tuple[int, list[BadItem]]:
    """Read a whole shard and decode its pictures: the number of samples, and the bad ones.

    A shard that cannot be read to its end is one more bad item.
    """
    count = 0
    bad: list[BadItem] = []
    try:
        for sample in read_samples(str(path), limits.max_bytes):
            count += 1
            pair = pair_of(sample, str(path), limits)
            problem = pair if isinstance(pair, str) else None
            if isinstance(pair, Pair):
                try:
                    pair.decode(limits)
                except DataError as error:
                    problem = f"{sample.key}: {error.message}"
            if problem is not None:
                bad.append(BadItem(str(path), sample.number, problem))
    except (DamagedShard, OSError) as error:
        bad.append(BadItem(str(path), None, f"the shard is lost from sample {count} on: {error}"))
    return count, bad
