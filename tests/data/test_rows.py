# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from verl_uae.data.frame import FILE, ROW
from verl_uae.data.rows import (
    BadItem,
    CheckSettings,
    ItemList,
    RowDoor,
    choose_rows,
    inspected,
    item_lines,
    quarantine_path,
)
from verl_uae.data.schema import make_row
from verl_uae.errors import DataError


def door(tmp_path: Path, **settings: object) -> RowDoor:
    return RowDoor((str(tmp_path / "a.parquet"),), ("a.parquet",), CheckSettings(**settings))


def test_inspection_keeps_the_order_in_threads() -> None:
    chunks = ([{"x": item} for item in range(start, start + 50)] for start in range(0, 200, 50))
    found = list(inspected(chunks, 4, lambda row: row["x"] * 2))
    assert found == [(item, {"x": item}, 2 * item) for item in range(200)]


def test_rows_are_chosen_as_asked() -> None:
    assert choose_rows(5, -1, shuffle=True, seed=0) is choose_rows(5, 5, shuffle=True, seed=0) is None
    assert choose_rows(5, 3, shuffle=False, seed=0) == [0, 1, 2]
    drawn = choose_rows(100, 30, shuffle=True, seed=1)
    assert drawn is not None and drawn == choose_rows(100, 30, shuffle=True, seed=1) and len(set(drawn)) == 30
    assert drawn != choose_rows(100, 30, shuffle=True, seed=2)


@pytest.mark.parametrize(("mode", "size"), [("full", (48, 32)), ("header", (48, 32)), ("off", (0, 0))])
def test_a_good_row_has_its_sizes(
    mode: str, size: tuple[int, int], tmp_path: Path, make_picture: Callable, make_bytes: Callable
) -> None:
    row = make_row(make_bytes(make_picture(48, 32)), index=0, split="train", sha256="") | {FILE: 0, ROW: 7}
    checked = door(tmp_path, verify_images=mode)
    assert checked.inspect(row) == [size]
    assert checked.origin(row) == ("a.parquet", 7) and checked.bad(row, "why") == BadItem("a.parquet", 7, "why")
    assert checked.decode(row, row["images"][0]).size == (48, 32)
    assert checked.encoded(row, row["images"][0]) == row["images"][0]["bytes"]
    assert (
        checked.inspect(row | {"images": []})
        == "column images: must be a list with at least one picture, got an empty list"
    )


def test_pictures_lie_beside_the_file_or_where_the_settings_say(tmp_path: Path) -> None:
    row = {FILE: 0, ROW: 0}
    assert door(tmp_path).image_root(row) == tmp_path.resolve()
    assert door(tmp_path, image_root="/pictures").image_root(row) == Path("/pictures")


def test_share_and_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [BadItem("a.parquet", row, "why") for row in range(3)]
    checked = door(tmp_path, max_bad_share=0.3, log_first=2)
    with pytest.raises(DataError, match=r"a\.parquet: 3 of 9 rows are bad.*first: a\.parquet, row 0: why"):
        checked.judge(9, bad)
    checked.judge(10, [])
    assert not caplog.records
    checked.judge(10, bad)
    assert "row 1: why" in caplog.text and "row 2" not in caplog.text


def test_files_of_one_name_have_lists_of_their_own(tmp_path: Path) -> None:
    folder = str(tmp_path / "q")
    paths = {quarantine_path(folder, [name]) for name in ("x/train.parquet", "y/train.parquet")}
    assert len(paths) == 2 and all(path.name.startswith("quarantine_train_") for path in paths)
    assert (tmp_path / "q").is_dir()


def test_items_are_one_json_object_a_line() -> None:
    items = [BadItem("a\nb.png", None, "“odd” name"), BadItem("x.parquet", 3, "empty file")]
    lines = item_lines(items).splitlines()
    assert [BadItem(**json.loads(line)) for line in lines] == items
    assert str(items[1]) == "x.parquet, row 3: empty file"


def test_a_growing_list_names_each_item_once(tmp_path: Path) -> None:
    items = [BadItem("a.tar", 3, "odd\nname\u2028here"), BadItem("a.tar", None, "cut")]
    for _ in range(2):  # the second time as after a restart
        listed = ItemList(tmp_path / "q.jsonl")
        for item in (*items, items[0]):
            listed.add(item)
    text = (tmp_path / "q.jsonl").read_text(encoding="utf-8")
    assert text == item_lines(items) and text.count("cut") == 1


def test_a_name_cannot_write_lines_of_its_own() -> None:
    assert str(BadItem("a\nb.png", 3, "x\x1b[2J")) == "a\\nb.png, row 3: x\\x1b[2J"


def test_a_list_that_was_cut_within_a_letter_goes_on(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes('{"file": "é'.encode()[:-1])
    ItemList(tmp_path / "q.jsonl").add(BadItem("a", None, "b"))
    assert (tmp_path / "q.jsonl").read_bytes().endswith(b'\n{"file": "a", "row": null, "reason": "b"}\n')
