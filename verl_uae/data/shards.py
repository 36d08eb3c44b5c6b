# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs streamed from webdataset tar shards, in whole batches of one bucket, with an exact place to resume at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from verl_uae.data.buckets import Buckets
from verl_uae.data.pairs import Pair


class PairShards(IterableDataset[list[Pair]]):
    """Batches of pairs from tar shards; for ``StatefulDataLoader(shards, batch_size=None)``.

    A sample is an image entry (``.jpg``, ``.jpeg``, ``.png``, ``.webp``) and a caption entry of the same key (``.txt``,
    or ``.json`` with a field ``caption``). Samples wait in one buffer per bucket, and a full buffer is a batch. The
    order of the shards is named by seed and epoch; inside a shard samples keep their order, so shards should be written
    shuffled (``verl-uae data pack --format webdataset`` does).

    The stream has no end unless ``epochs`` is given: one epoch goes into the next, and what waits in the buffers
    waits on, so nothing is dropped. At the end of ``epochs`` what fills no batch is dropped and counted.

    State: epoch, shard, number of samples read of it, and (shard, number) of what waits, which is read again on load.

    Only local files and http(s) URLs are opened, the latter by webdataset (curl) in its secure mode: no URL runs a
    command, no entry is unpickled, other entries are never looked at. A bad sample costs itself, a damaged or cut
    shard the rest of it; both are counted and listed. More than ``max_bad_share`` of them stop the run.

    Args:
        shards: glob or brace pattern, or URL with braces, or several.
        buckets: see `Buckets`.
        batch_size: pairs per batch of all ranks together.
        seed: names the order.
        shuffle: False keeps shards in the order of their names.
        epochs: passes over the data; None: no end.
        settings: `rows.CheckSettings`: ``max_bad_share``, ``quarantine_dir``, ``image_limits`` and ``verify_images``
            (``full`` decodes here, else the claims are read and a rank finds the rest).

    Raises:
        ConfigError: for an impossible argument or a missing package.
        DataError: for a pattern without files or a URL that is refused; while iterating, for too many bad samples.
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
        settings: Any = None,
    ) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[Pair]]:
        """Iterator from epoch 0, with ``state_dict``, ``load_state_dict`` and ``counts``."""
        raise NotImplementedError
