# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_uae.data.quarantine import BadItem, ItemList, published, write_items


def test_items_are_one_json_object_a_line(tmp_path: Path) -> None:
    items = [BadItem("a\nb.png", None, "“odd” name"), BadItem("x.parquet", 3, "empty file")]
    write_items(tmp_path / "q.jsonl", items)
    lines = (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines()
    assert [BadItem(**json.loads(line)) for line in lines] == items
    assert str(items[1]) == "x.parquet, row 3: empty file"


def test_files_appear_together_after_success(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    b.write_text("old")
    with published(a, b, tmp_path / "never written") as (new_a, new_b, _):
        new_a.write_text("1")
        new_b.write_text("2")
        assert not a.exists() and b.read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "1", "b": "2"}


def test_nothing_changes_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), published(tmp_path / "a", tmp_path / "b") as (new_a, new_b):
        new_a.write_text("half")
        new_b.write_text("half")
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_growing_list_names_each_item_once(tmp_path: Path) -> None:
    items = [BadItem("a.tar", 3, "odd\nname\u2028here"), BadItem("a.tar", None, "cut")]
    for _ in range(2):  # the second time as after a restart
        listed = ItemList(tmp_path / "q.jsonl")
        for item in (*items, items[0]):
            listed.add(item)
    text = (tmp_path / "q.jsonl").read_text(encoding="utf-8")
    write_items(tmp_path / "whole.jsonl", items)
    assert text == (tmp_path / "whole.jsonl").read_text(encoding="utf-8") and text.count("cut") == 1


def test_a_name_cannot_write_lines_of_its_own() -> None:
    assert str(BadItem("a\nb.png", 3, "x\x1b[2J")) == "a\\nb.png, row 3: x\\x1b[2J"


def test_a_list_that_was_cut_within_a_letter_goes_on(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes('{"file": "é'.encode()[:-1])
    ItemList(tmp_path / "q.jsonl").add(BadItem("a", None, "b"))
    assert (tmp_path / "q.jsonl").read_bytes().endswith(b'\n{"file": "a", "row": null, "reason": "b"}\n')
