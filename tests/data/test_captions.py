# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from verl_uae.data.captions import read_captions
from verl_uae.errors import DataError


def test_one_object_a_line(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"file": "a.png", "caption": "é"}\n{"file": "b/c.png", "caption": ""}\n')
    assert read_captions(tmp_path / "c.jsonl") == {"a.png": "é", "b/c.png": ""}


def test_separators_within_a_caption_do_not_end_its_line(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    lines = [f'{{"file": "{name}", "caption": "{text}"}}' for name in ("a.png", "b.png")]
    (tmp_path / "c.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    assert read_captions(tmp_path / "c.jsonl") == {"a.png": text, "b.png": text}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "row 0: not JSON"),
        ('{"file": "a", "caption": "b"}\n{"file": "a"}', "row 1: expected"),
        ("[]", "row 0: expected"),
        ('{"file": "a", "caption": "b"}\n{"file": "a", "caption": "c"}', "row 1: file 'a' has a caption already"),
    ],
)
def test_caption_file_errors_name_the_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_captions(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="cannot read captions"):
        read_captions(tmp_path / "absent.jsonl")
