# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_uae.data.frame import column_of
from verl_uae.data.schema import PROMPT_COLUMN, CaptionPrompt, first_pictures, make_prompt, most_frequent_prompt
from verl_uae.errors import DataError, DecodeError


def asking(user: str, *system: str) -> list[dict[str, str]]:
    return [*({"role": "system", "content": text} for text in system), {"role": "user", "content": user}]


def test_the_prompt_of_most_rows_is_chosen_and_its_share_is_known() -> None:
    rows = [asking("<image>a"), asking("<image>b", "be brief"), asking("<image>b", "be brief")]
    assert most_frequent_prompt(rows) == CaptionPrompt("<image>b", "be brief", rows=2, total=3)
    assert most_frequent_prompt(rows[:2]) == CaptionPrompt("<image>a", "", rows=1, total=2)
    found = most_frequent_prompt(rows[1:])
    assert found is not None and found.rows == found.total
    assert most_frequent_prompt([make_prompt()]) == CaptionPrompt(
        make_prompt()[1]["content"], make_prompt()[0]["content"], 1, 1
    )


@pytest.mark.parametrize(
    "messages",
    [
        asking("no picture"),
        asking("<image> and <image>"),
        asking("<image>a", ""),
        [*asking("<image>a"), {"role": "assistant", "content": "b"}, *asking("c")],
        [{"role": "user", "content": b"<image>"}],
        [],
        None,
    ],
)
def test_a_prompt_that_inference_cannot_ask_is_none(messages: Any) -> None:
    assert most_frequent_prompt([messages]) is None
    assert most_frequent_prompt([]) is None


def test_prompts_are_read_from_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.parquet" for name in "ab"]
    for number, path in enumerate(files):
        pq.write_table(
            pa.table({"prompt": [asking(f"<image>{number}")] * (number + 1), "images": [0] * (number + 1)}), path
        )
    found = most_frequent_prompt(chain.from_iterable(column_of(str(path), PROMPT_COLUMN) for path in files))
    assert found == CaptionPrompt("<image>1", "", rows=2, total=3)
    pq.write_table(pa.table({"images": [0]}), files[0])
    files[1].write_bytes(b"no parquet")
    for path in files:
        with pytest.raises(DataError, match=str(path)):
            list(column_of(str(path), PROMPT_COLUMN))


def test_first_pictures_are_of_any_layout(tmp_path: Path, make_picture: Callable, make_bytes: Callable) -> None:
    """A path is followed within the folder of the rows alone."""
    image = make_picture(32, 48)
    image.save(tmp_path / "x.png")
    image.save(tmp_path.parent / "outside.png")
    cells = [[{"bytes": make_bytes(image), "path": None}], [{"bytes": None, "path": "../outside.png"}], [], None]
    pq.write_table(pa.table({"images": cells}), tmp_path / "a.parquet")
    first, *others = first_pictures(tmp_path / "a.parquet", 4)
    assert first.decode().tobytes() == image.tobytes()
    for row, (picture, reason) in enumerate(zip(others, ("path leaves its folder", *["no list"] * 2), strict=True), 1):
        with pytest.raises(DecodeError, match=rf"a\.parquet, row {row}: .*{reason}"):
            picture.decode()
    lines = ['{"images": ["x.png"]}', '{"images": [null]}', '{"images": 3}', '{"images": ["caf\udce9.png"]}', "{"]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    first, *others = first_pictures(tmp_path / "a.jsonl", 9)
    assert first.decode().tobytes() == image.tobytes()
    for picture, reason in zip(others, ("NoneType", "no list", "byte 0xe9", "not JSON"), strict=True):
        with pytest.raises(DecodeError, match=reason):
            picture.decode()
