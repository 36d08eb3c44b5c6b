# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from verl_uae.data.quarantine import BadItem, ItemList, write_items


def test_items_are_one_json_object_a_line(tmp_path: Path) -> None:
    items = [BadItem("a\nb.png", None, "“odd” name"), BadItem("x.parquet", 3, "empty file")]
    write_items(tmp_path / "q.jsonl", items)
    lines = (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines()
    assert [BadItem(**json.loads(line)) for line in lines] == items
    assert str(items[1]) == "x.parquet, row 3: empty file"


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
