# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The check and the data sets of training give one verdict on every row."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from tests.data.shard_world import members, tar_bytes
from tests.data.test_frame import ODD
from verl_uae.data.cli import check_file
from verl_uae.data.dataset import UAEDataset
from verl_uae.data.limits import DEFAULT_LIMITS
from verl_uae.data.pairs import PairRows
from verl_uae.data.rows import CheckSettings
from verl_uae.data.schema import MEDIA_TOKENS, make_row, row_schema
from verl_uae.errors import DataError

PROMPT = [{"role": "user", "content": "<image>describe"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def picture_bytes(make_picture: Callable, make_bytes: Callable) -> bytes:
    return make_bytes(make_picture(32, 32))


def row(data: bytes, index: int, **changes: object) -> dict:
    return make_row(data, index=index, split="train", sha256="", prompt=PROMPT, caption=f"no. {index}") | changes


def listed(folder: Path) -> set[int]:
    (path,) = folder.iterdir()
    return {json.loads(line)["row"] for line in path.read_text().splitlines()}


def verdicts(path: Path, scratch: Path) -> dict[str, set[int] | str]:
    """Bad rows by who judges, or the error that refuses the file."""
    found: dict[str, set[int] | str] = {}
    settings = {"max_bad_share": 1.0}
    config = OmegaConf.create({"max_prompt_length": 10**6, "filter_overlong_prompts": False, "uae_max_bad_share": 1.0})

    def judge(name: str, call: Callable[[], set[int]]) -> None:
        try:
            found[name] = call()
        except DataError as error:
            str(error).encode()
            found[name] = "no usable row" if "no usable row" in str(error) else error.message.split(";")[0]

    def check(pairs: bool) -> set[int]:
        total, bad = check_file(path, DEFAULT_LIMITS, refused_text=MEDIA_TOKENS, pairs=pairs)
        for item in bad:
            str(item).encode()
        if len(bad) == total:
            raise DataError(path, None, "no usable row")
        return {item.row for item in bad}

    def training() -> set[int]:
        folder = scratch / "training"
        UAEDataset(str(path), None, OmegaConf.merge(config, {"uae_quarantine_dir": str(folder)}), None)
        return listed(folder)

    def pairs() -> set[int]:
        folder = scratch / "pairs"
        PairRows(path, CheckSettings(quarantine_dir=str(folder), **settings))
        return listed(folder)

    judge("check", lambda: check(False))
    judge("training", training)
    judge("check pairs", lambda: check(True))
    judge("pairs", pairs)
    return found


def agree(path: Path, scratch: Path) -> tuple[set[int] | str, set[int] | str]:
    found = verdicts(path, scratch)
    assert found["check"] == found["training"] and found["check pairs"] == found["pairs"], found
    return found["check"], found["pairs"]


def test_layouts_that_people_have(picture_bytes: bytes, tmp_path: Path, make_picture: Callable) -> None:
    make_picture(32, 32).save(tmp_path / "x.png")
    rows = [row(picture_bytes, index) for index in range(4)]
    plain = pa.Table.from_pylist(rows, schema=row_schema())
    images = plain.schema.get_field_index("images")
    layouts = {
        "plain": plain,
        "paths": plain.set_column(images, "images", pa.array([["x.png"]] * 4)),
        "bytes": plain.set_column(images, "images", pa.array([[picture_bytes]] * 4)),
        "fixed": plain.set_column(images, "images", pa.array([[picture_bytes]] * 4, pa.list_(pa.binary(), 1))),
        "large": plain.set_column(images, "images", pa.array([[picture_bytes]] * 4, pa.large_list(pa.large_binary()))),
        "category": plain.set_column(0, "data_source", pa.array(["uae"] * 4).dictionary_encode()),
        "number": plain.set_column(0, "data_source", pa.array([1] * 4)),
        "index as text": plain.drop_columns(["extra_info"]).append_column(
            "extra_info", pa.array([{"index": "0", "caption": "a"}] * 4)
        ),
        "truth as list": plain.drop_columns(["reward_model"]).append_column(
            "reward_model", pa.array([{"ground_truth": ["a"]}] * 4)
        ),
        **{name: plain.append_column("mine", pa.concat_arrays([odd, odd])) for name, odd in ODD.items()},
    }
    for name, table in layouts.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        assert agree(path, tmp_path / "q" / name) == (set(), set()), name
    for name, words in (("no caption", ("prompt", "images")), ("no images", ("prompt", "extra_info"))):
        pq.write_table(plain.select(words), tmp_path / f"{name}.parquet")
        everywhere, pairs = agree(tmp_path / f"{name}.parquet", tmp_path / "q" / name)
        if name == "no caption":
            assert (everywhere, pairs) == (set(), "no usable row")
        else:
            assert everywhere == pairs == "column images is missing"


def test_random_files_get_one_verdict(picture_bytes: bytes, tmp_path: Path, make_picture: Callable) -> None:
    """Rows that are bad in many ways, in parquet and in JSON lines, in random order."""
    make_picture(32, 32).save(tmp_path / "x.png")
    rng = random.Random(0)
    info = {"index": 0, "caption": "c"}
    bad: list[dict] = [
        {"images": []},
        {"images": None},
        {"images": [{"bytes": b"GIF89a", "path": None}]},
        {"images": [{"bytes": None, "path": "../x.png"}]},
        {"images": [{"bytes": None, "path": None}]},
        {"prompt": None},
        {"prompt": [{"role": "user", "content": "no mark"}]},
        {"prompt": [{"role": "robot", "content": "<image>"}]},
        {"prompt": [{"role": "user", "content": "<image> <|image_pad|>"}]},
        {"prompt": [{"role": "user", "content": None}]},
    ]
    captions: list[dict] = [{"extra_info": info | {"caption": text}} for text in (None, "", " \n")]
    halves: list[dict] = [{"extra_info": info | {"caption": "cut \ud83d"}}, {"data_source": "\udcff"}]
    for number in range(12):
        wanted, pairs = set(), set()
        rows = []
        for index in range(20):
            kind = rng.random()
            change = rng.choice(bad) if kind < 0.2 else rng.choice(captions) if kind < 0.35 else {}
            if number % 2 and kind > 0.9:
                change = rng.choice(halves)
            rows.append(copy.deepcopy(row(picture_bytes, index, **change)))
            if change and change not in captions:
                wanted.add(index)
            if change:
                pairs.add(index)
        if number % 2:
            path = tmp_path / f"{number}.jsonl"
            for entry in rows:
                for cell in entry["images"] or []:
                    cell["path"] = "x.png" if cell["bytes"] == picture_bytes else cell["path"] or "gone.png"
                    del cell["bytes"]
            path.write_text("".join(json.dumps(entry) + "\n" for entry in rows))
        else:
            path = tmp_path / f"{number}.parquet"
            pq.write_table(pa.Table.from_pylist(rows, schema=row_schema()), path)
        assert agree(path, tmp_path / "q" / str(number)) == (wanted, pairs)


def test_a_shard_is_checked_to_its_pictures(tmp_path: Path) -> None:
    content = members(0, 4)
    cut = (content[2][0], content[2][1][:100])
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([*content[:2], cut, *content[3:], ("x.png", b"GIF89a")]))
    total, bad = check_file(path, DEFAULT_LIMITS, refused_text=MEDIA_TOKENS)
    assert total == 5 and [item.row for item in bad] == [1, 4]
    assert "00001: " in bad[0].reason and "found: .png" in bad[1].reason
    path.write_bytes(path.read_bytes()[:5000])
    total, bad = check_file(path, DEFAULT_LIMITS, refused_text=MEDIA_TOKENS)
    assert bad[-1].row is None and "the shard is lost from sample" in bad[-1].reason
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(DataError, match="compressed with gzip: unpack it first"):
        check_file(tmp_path / "b.tar.gz", DEFAULT_LIMITS, refused_text=MEDIA_TOKENS)


def test_odd_names_are_checked_and_read(picture_bytes: bytes, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(picture_bytes, index) for index in range(2)], schema=row_schema())
    for name in ("UPPER.PARQUET", "plain.pq", "a [1].parquet", "caf\udce9.parquet"):
        pq.write_table(table, tmp_path / "x")
        (tmp_path / "x").rename(tmp_path / name)
        assert agree(tmp_path / name, tmp_path / "q" / name.encode("ascii", "replace").decode()) == (set(), set())
