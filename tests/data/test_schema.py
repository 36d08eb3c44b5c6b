# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pyarrow as pa
import pytest

from verl_uae.data.schema import make_prompt, make_row, media_tokens, row_problem, row_schema
from verl_uae.errors import DataError


@pytest.fixture
def row() -> dict:
    return make_row(b"png", index=3, split="train", sha256="ab", source="a/b.png", size=(4, 5), caption="a cat")


def test_row_survives_arrow(row: dict) -> None:
    table = pa.Table.from_pylist([row], schema=row_schema())
    assert table.to_pylist() == [row]


def test_row_holds_what_verl_reads(row: dict) -> None:
    assert row["prompt"][-1]["content"].count("<image>") == 1 and row["prompt"][0]["role"] == "system"
    assert row["images"] == [{"bytes": b"png", "path": "a/b.png"}]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "a cat"}
    assert row["extra_info"]["index"] == 3 and row["extra_info"]["sha256"] == "ab"
    no_caption = make_row(b"png", index=0, split="val", sha256="")
    assert no_caption["reward_model"]["ground_truth"] == "" and no_caption["extra_info"]["caption"] is None


def test_further_fields_have_a_place() -> None:
    schema = row_schema({"scene": pa.string()})
    row = make_row(b"png", index=0, split="val", sha256="", extra={"scene": "{}"})
    assert pa.Table.from_pylist([row], schema=schema).to_pylist() == [row]
    with pytest.raises(ValueError, match="sha256"):
        row_schema({"sha256": pa.string()})


def test_prompt_gets_its_mark() -> None:
    assert make_prompt("what is it?", system=None) == [{"role": "user", "content": "<image>\nwhat is it?"}]
    assert make_prompt("look <image> here", system=None)[0]["content"] == "look <image> here"


def _set(row: dict, value: object, *path: str | int) -> dict:
    changed = copy.deepcopy(row)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (None, ("prompt",), "column prompt: must be a list"),
        ([], ("prompt",), "column prompt: must be a list of messages, got an empty list"),
        ("tool", ("prompt", 0, "role"), "message 0 has the role 'tool'"),
        (None, ("prompt", 1, "content"), "message 1 must have a plain string"),
        ([{"type": "image", "image": "http://x/y.png"}], ("prompt", 1, "content"), "plain string as content, got list"),
        ("no mark", ("prompt", 1, "content"), "1 pictures but the marks []"),
        ("<image><image>", ("prompt", 1, "content"), "1 pictures but the marks"),
        ("<image><video>", ("prompt", 1, "content"), "1 pictures but the marks"),
        ("<image><|image_pad|>", ("prompt", 1, "content"), "special token <|image_pad|>"),
        ([], ("images",), "column images: must be a list with at least one picture"),
        (None, ("images",), "column images"),
        (["a.mp4"], ("videos",), "column videos: only pictures"),
        ("x", ("extra_info",), "column extra_info"),
    ],
)
def test_problem_names_the_column(value: object, path: tuple, reason: str, row: dict) -> None:
    assert row_problem(row, refused_text=["<|image_pad|>"]) is None
    assert reason in row_problem(_set(row, value, *path), refused_text=["<|image_pad|>"])


def test_make_row_refuses_a_bad_prompt(make_bytes: Callable) -> None:
    with pytest.raises(DataError, match=r"a\.png, row 5: column prompt: 1 pictures but the marks \[\]"):
        make_row(b"", index=5, split="val", sha256="", source="a.png", prompt=[{"role": "user", "content": "hi"}])


def test_text_that_no_tokenizer_takes_is_named(row: dict) -> None:
    for token in media_tokens(None):
        row["prompt"][-1]["content"] = f"<image> {token}"
        assert row_problem(row) == f"column prompt: message 1 contains the special token {token}"
    row["prompt"][-1]["content"] = "<image> cut \ud83d"
    assert "column prompt: message 1 holds half of a surrogate pair" in (row_problem(row) or "")
    row["prompt"][-1]["content"] = "<image>"
    row["extra_info"]["caption"] = "cut \ud83d"
    assert "column extra_info: caption holds half of a surrogate pair" in (row_problem(row) or "")
    processor = SimpleNamespace(image_token="<pic>", video_token=None)
    assert media_tokens(processor) == (*media_tokens(None), "<pic>")
