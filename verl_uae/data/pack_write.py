# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Write rows as parquet, or as the webdataset tar shards that `shards.PairShards` streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_uae.data.headers import read_header
from verl_uae.data.schema import row_schema
from verl_uae.data.shard_urls import webdataset

_ROW_GROUP_BYTES = 32 * 2**20
_ROW_GROUP_ROWS = 256


def write_shard(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `schema.make_row` as samples: the picture as it is stored, and a JSON entry.

    A sample is ``<index, nine digits>.png`` (or ``.jpg``, ``.webp``) and ``<index>.json`` with ``caption``, ``sha256``,
    ``source``, ``width`` and ``height``. Equal rows give equal bytes.

    Raises:
        ConfigError: if webdataset is not installed.
    """
    package = webdataset()
    with open(path, "wb") as file, package.TarWriter(file, encoder=False, mtime=0) as writer:
        for row in rows:
            image, info = row["images"][0]["bytes"], row["extra_info"]
            about = {key: info[key] for key in ("caption", "sha256", "source", "width", "height")}
            suffix = {"JPEG": "jpg"}.get(kind := read_header(image).format, kind.lower())
            text = json.dumps(about, ensure_ascii=False).encode()
            writer.write({"__key__": f"{info['index']:09d}", suffix: image, "json": text})


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of `schema.make_row`, a row group at a time."""
    schema = row_schema()
    with pq.ParquetWriter(path, schema) as writer:
        for group in _row_groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["images"][0]["bytes"])
        if size >= _ROW_GROUP_BYTES or len(group) >= _ROW_GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group
