# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_uae.data.pack_write import write_parquet, write_shard
from verl_uae.data.schema import make_row


@pytest.fixture
def rows(make_picture: Callable, make_bytes: Callable) -> list[dict]:
    images = [make_bytes(make_picture(seed=seed), format) for seed, format in enumerate(("PNG", "JPEG", "WEBP"))]
    return [
        make_row(image, index=index + 5, split="train", sha256=f"{index}", caption=f"é {index}", size=(96, 64))
        for index, image in enumerate(images)
    ]


def test_a_shard_holds_the_stored_bytes_and_what_is_known(rows: list[dict], tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", iter(rows))
    with tarfile.open(tmp_path / "a.tar") as archive:
        content = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    names = ["000000005.png", "000000006.jpg", "000000007.webp"]
    assert [name for name in content if not name.endswith(".json")] == names
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        assert content[name] == row["images"][0]["bytes"]
        about = json.loads(content[f"{name.split('.')[0]}.json"])
        assert about == {"caption": f"é {index}", "sha256": f"{index}", "source": None, "width": 96, "height": 64}
    write_shard(tmp_path / "b.tar", rows)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_rows_come_back_from_parquet(rows: list[dict], tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", iter(rows * 200))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.read().to_pylist() == rows * 200
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [256, 256, 88]
