# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchdata.stateful_dataloader import StatefulDataLoader

from verl_uae.data.buckets import Buckets, BucketSampler
from verl_uae.data.images import image_digest
from verl_uae.data.pairs import Pair, PairRows
from verl_uae.data.rows import CheckSettings
from verl_uae.data.schema import make_row, row_schema
from verl_uae.errors import DataError, DecodeError
from verl_uae.scenes.dataset import write_dataset

SIZES = [(32, 32), (48, 32), (64, 96), (40, 40)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def rows(make_picture: Callable, make_bytes: Callable) -> list[dict]:
    found = []
    for seed, size in enumerate(SIZES):
        picture = make_picture(*size, seed)
        found.append(
            make_row(
                make_bytes(picture),
                index=seed,
                split="train",
                sha256=image_digest(picture),
                size=size,
                caption=f"caption {seed}",
            )
        )
    return found


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_rows(rows: list[dict], name: str = "train.parquet") -> Path:
        pq.write_table(pa.Table.from_pylist(rows, schema=row_schema()), tmp_path / name)
        return tmp_path / name

    return write_rows


@pytest.mark.parametrize("mode", ["full", "header", "off"])
def test_a_row_becomes_a_pair(mode: str, rows: list[dict], write: Callable) -> None:
    file = write(rows)
    pairs = PairRows(file, CheckSettings(verify_images=mode))
    assert len(pairs) == 4 and pairs.sizes == SIZES and not pairs.bad
    for number, row in enumerate(rows):
        image = row["images"][0]["bytes"]
        place = (*SIZES[number], str(file), number)
        prompt = tuple(row["prompt"])
        expected = Pair(image, f"caption {number}", row["extra_info"]["sha256"], *place, prompt=prompt)
        assert pairs[number] == expected == pickle.loads(pickle.dumps(pairs[number]))
        assert pairs[number].name == f"{file}, row {number}"
        assert pairs[number].content_key == hashlib.sha256(image).hexdigest()
        assert image_digest(pairs[number].decode()) == pairs[number].identity == row["extra_info"]["sha256"]


def test_white_space_around_a_caption_is_no_part_of_it(rows: list[dict], write: Callable) -> None:
    rows[0]["extra_info"]["caption"] = " a\r\ncircle\r\n"
    assert PairRows(write(rows))[0].caption == "a\r\ncircle"


@pytest.mark.parametrize("digest", ["", None, "from somewhere", "A" * 64])
def test_only_a_digest_counts_as_one(digest: str | None, rows: list[dict], write: Callable) -> None:
    rows[0]["extra_info"]["sha256"] = digest
    pair = PairRows(write(rows))[0]
    assert pair.digest is None and pair.identity == pair.content_key


def test_rows_without_caption_or_with_two_pictures_are_bad(rows: list[dict], write: Callable, tmp_path: Path) -> None:
    for number, caption in enumerate((None, "", " \n ")):
        rows[number]["extra_info"]["caption"] = caption
    double = json.loads(json.dumps({**rows[3], "images": None}))
    double["images"] = rows[3]["images"] * 2
    double["prompt"][1]["content"] += "<image>"
    file = write([*rows, double])
    settings = CheckSettings(max_bad_share=0.8, quarantine_dir=str(tmp_path / "q"))
    pairs = PairRows([str(file)], settings)
    assert len(pairs) == 1 and pairs.sizes == SIZES[3:] and pairs[0].row == 3
    reasons = ["caption is missing"] * 3 + ["a pair has one picture, got 2"]
    assert [(item.row, item.reason.split(": ")[1]) for item in pairs.bad] == list(
        zip((0, 1, 2, 4), reasons, strict=True)
    )
    (listed,) = (tmp_path / "q").iterdir()
    assert [json.loads(line)["row"] for line in listed.read_text().splitlines()] == [0, 1, 2, 4]
    with pytest.raises(DataError, match=r"4 of 5 rows are bad, more than data\.uae_max_bad_share=0\.5"):
        PairRows(file, CheckSettings(max_bad_share=0.5))
    rows[3]["extra_info"]["caption"] = None
    with pytest.raises(DataError, match="no usable row: 4 rows, 4 bad"):
        PairRows(write(rows), CheckSettings(max_bad_share=1.0))


def test_the_checks_of_rows_are_those_of_the_other_data_set(
    rows: list[dict], write: Callable, make_bytes: Callable, make_picture: Callable
) -> None:
    rows[0]["images"] = [{"bytes": rows[0]["images"][0]["bytes"][:100], "path": None}]
    rows[1]["images"] = [{"bytes": make_bytes(make_picture(), "GIF"), "path": None}]
    rows[2]["prompt"] = [{"role": "user", "content": "no picture here"}]
    pairs = PairRows(write(rows), CheckSettings(max_bad_share=0.75))
    assert [item.row for item in pairs.bad] == [0, 1, 2] and pairs[0].row == 3
    assert "format GIF" in pairs.bad[1].reason and "1 pictures but the marks []" in pairs.bad[2].reason


def test_sizes_are_those_of_the_upright_picture(
    rows: list[dict], write: Callable, make_bytes: Callable, make_picture: Callable
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data = make_bytes(make_picture(48, 32), "JPEG", exif=turned)
    rows[0]["images"] = [{"bytes": data, "path": None}]
    rows[0]["extra_info"] |= {"width": None, "height": None}
    file = write(rows)
    for mode in ("full", "header", "off"):
        pairs = PairRows(file, CheckSettings(verify_images=mode))
        assert pairs.sizes[0] == (32, 48) == pairs[0].decode().size
        assert (pairs[0].width, pairs[0].height) == (32, 48)


def test_without_a_check_sizes_are_believed(rows: list[dict], write: Callable) -> None:
    rows[0]["extra_info"] |= {"width": 7, "height": 9}
    rows[1]["extra_info"] |= {"width": -1, "height": 9}
    file = write(rows)
    assert PairRows(file, CheckSettings(verify_images="off")).sizes == [(7, 9), *SIZES[1:]]
    assert PairRows(file, CheckSettings(verify_images="header")).sizes == SIZES


def test_a_picture_that_vanishes_costs_its_sample(
    rows: list[dict], write: Callable, make_picture: Callable, tmp_path: Path
) -> None:
    make_picture(32, 32, 7).save(tmp_path / "x.png")
    rows[1]["images"] = [{"bytes": None, "path": "x.png"}]
    pairs = PairRows(write(rows))
    assert image_digest(pairs[1].decode()) == image_digest(make_picture(32, 32, 7))
    (tmp_path / "x.png").unlink()
    assert pairs[1].image == b"" and "FileNotFoundError" in (pairs[1].problem or "")
    with pytest.raises(DecodeError, match=r"train\.parquet, row 1: FileNotFoundError"):
        pairs[1].decode()


def test_a_damaged_picture_is_named_when_it_is_decoded(rows: list[dict], write: Callable) -> None:
    whole = rows[2]["images"][0]["bytes"]
    rows[2]["images"] = [{"bytes": whole[: len(whole) // 2], "path": None}]
    pair = PairRows(write(rows), CheckSettings(verify_images="header"))[2]
    with pytest.raises(DecodeError, match=r"train\.parquet, row 2: OSError"):
        pair.decode()


def test_several_files_and_a_part_of_them(rows: list[dict], write: Callable) -> None:
    files = [write(rows, "a.parquet"), write(rows[::-1], "b.parquet")]
    pairs = PairRows(files)
    assert [(pair.file, pair.row) for pair in pairs] == [(str(file), row) for file in files for row in range(4)]
    assert [pair.row for pair in PairRows(files, max_samples=2)] == [0, 1]
    drawn = [[pair.name for pair in PairRows(files, max_samples=5, shuffle=True, seed=3)] for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 5
    with pytest.raises(DataError, match="at least one data file"):
        PairRows([])
    with pytest.raises(DataError, match=r"none\.parquet: cannot be read"):
        PairRows(files[0].with_name("none.parquet"))


def test_batches_through_a_loader(tmp_path: Path) -> None:
    """With the built-in world: what comes out of a loader decodes to what went in, a bucket at a time."""
    file = write_dataset(tmp_path / "scenes", train=24, val=1)["train"]
    pairs = PairRows(str(file))
    buckets = Buckets.single(64)
    sampler = BucketSampler([buckets.bucket_of(*size) for size in pairs.sizes], 8, seed=1)
    loader = StatefulDataLoader(pairs, batch_size=8, sampler=sampler, drop_last=True, collate_fn=list, num_workers=1)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert [pair.row for batch in batches for pair in batch] == sampler.order(0)
    stored = pq.read_table(file).to_pylist()
    for pair in batches[0]:
        assert pair.caption == stored[pair.row]["extra_info"]["caption"]
        assert image_digest(pair.decode()) == stored[pair.row]["extra_info"]["sha256"]
