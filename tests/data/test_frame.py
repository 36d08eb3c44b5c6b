# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of files good and odd; the row is compared with what was written."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import logging
import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_uae.data import frame as module
from verl_uae.data.frame import FILE, PROBLEM, ROW, Frame, chunks_of, column_of, file_kind, open_rows, parquet_batches
from verl_uae.errors import DataError

NEEDED = frozenset({"x"})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def both(path: Path, needed: frozenset[str] = NEEDED) -> list[dict]:
    """The rows at once to be had, and as a stream: they are the same."""
    found = list(Frame([open_rows(str(path), needed)]))
    streamed = [row for chunk in chunks_of(str(path), needed, ()) for row in chunk]
    assert [{**dict.fromkeys(found[0]), **row} if found else row for row in streamed] == found
    return found


def column(values: list, kind: pa.DataType) -> pa.Array:
    """Of raw 64-bit or 32-bit numbers where the kind is one of time."""
    width = {32: np.int32, 64: np.int64}.get(getattr(kind, "bit_width", 0) if pa.types.is_temporal(kind) else 0)
    if width is None:
        return pa.array(values, kind)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.array(values, width).tobytes())])


def text_column(values: list[bytes]) -> pa.Array:
    """Strings of any bytes."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


FAR = 2**53
ODD = {
    "text": text_column([b"good", b"caf\xe9"]),
    "half": text_column([b"good", b"\xed\xa0\xbd"]),
    "list of text": pa.ListArray.from_arrays([0, 1, 2], text_column([b"good", b"\xff"])),
    "struct of text": pa.StructArray.from_arrays([text_column([b"good", b"\xff"])], ["a"]),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1]), text_column([b"good", b"\xff"])),
    "large text": text_column([b"good", b"\xff"]).cast(pa.large_string()),
    "large list": pa.ListArray.from_arrays([0, 1, 2], text_column([b"good", b"\xff"])).cast(pa.large_list(pa.string())),
    "dictionary in a list": pa.ListArray.from_arrays(
        [0, 1, 2], pa.DictionaryArray.from_arrays(pa.array([0, 1]), text_column([b"good", b"\xff"]))
    ),
    "map": pa.MapArray.from_arrays([0, 1, 2], text_column([b"k", b"\xff"]), pa.array([1, 2])),
    "date": column([0, 2**31 - 1], pa.date32()),
    **{f"timestamp {unit}": column([0, FAR * 1000], pa.timestamp(unit)) for unit in ("ms", "us")},
    "timestamp zone": column([0, FAR * 1000], pa.timestamp("us", "UTC")),
    "timestamp before": column([0, -FAR * 1000], pa.timestamp("us", "Europe/Berlin")),
}


@pytest.mark.parametrize("name", ODD)
def test_one_odd_value_costs_its_row_where_it_is_needed_and_nothing_elsewhere(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": ODD[name], "y": [1, 2]}), path)
    good, bad = both(path)
    assert good["x"] is not None and PROBLEM not in good
    assert bad["x"] is None and bad["y"] == 2 and bad[PROBLEM].startswith("column x: holds ")
    bad[PROBLEM].encode()
    with caplog.at_level(logging.WARNING):
        good, bad = both(path, frozenset({"y"}))
    assert good["x"] is not None and bad["x"] is None and PROBLEM not in bad
    assert "column x, which is not needed, holds" in caplog.text


def test_values_of_all_kinds_are_python_values(tmp_path: Path) -> None:
    words = pa.array(["a", "b", "a"]).dictionary_encode()
    table = pa.table(
        {
            "x": pa.array([[{"role": "user"}], [], None]),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(range(6)), 2),
            "large": pa.array([["a"], [], None], pa.large_list(pa.large_string())),
            "words": words,
            "deep": pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1, 2, 3], words)], ["w"]),
            "map": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
            "decimal": pa.array([decimal.Decimal("1.5"), None, None], pa.decimal256(50, 2)),
            "half": pa.array([np.float16(1), None, None], pa.float16()),
            "bytes": pa.array([b"abc", None, None], pa.binary(3)),
            "time": pa.array([datetime.time(1), None, None]),
            "zone": pa.array([datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), None, None]),
            "id": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None, None], pa.binary(16))),
            "nothing": pa.nulls(3),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second, third = both(tmp_path / "a.parquet")
    assert first == {
        "x": [{"role": "user"}],
        "fixed": [0, 1],
        "large": ["a"],
        "words": "a",
        "deep": {"w": ["a"]},
        "map": {"a": 1},
        "decimal": decimal.Decimal("1.50"),
        "half": 1.0,
        "bytes": b"abc",
        "nothing": None,
        "time": datetime.time(1),
        "zone": first["zone"],
        "id": b"0" * 16,
        FILE: 0,
        ROW: 0,
    }
    assert first["zone"].timestamp() == 1577836800
    assert second["x"] == [] and second["map"] == {} and third["x"] is None and third["words"] == "a"


@pytest.mark.parametrize(
    "name", ["UPPER.PARQUET", "plain.pq", "a [1].parquet", "a*?.parquet", "none", "caf\udce9.parquet", "é"]
)
def test_a_file_is_what_its_content_says(name: str, tmp_path: Path) -> None:
    for form in {name, unicodedata.normalize("NFD", name)}:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "good.parquet")
        (tmp_path / "good.parquet").rename(tmp_path / form)
        assert [row["x"] for row in both(tmp_path / form)] == [1]
        (tmp_path / form).write_text('{"x": 1}\n')
        if not name.lower().endswith(".parquet"):
            assert [row["x"] for row in both(tmp_path / form)] == [1]


def test_json_lines_cost_a_bad_row_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        b'\xef\xbb\xbf{"x": "a", "y": 1}\r',
        b"",
        b'{"x": "caf\xe9"}',
        b'{"x": ' + b"9" * 5000 + b"}",
        b'{"x": ' + b"[" * 100_000,
        b'{"x": "cut \\ud83d"}',
        b'{"x": "\\ud83d\\ude42", "z": "cut \\udc00"}',
        b"[1]",
        b"{",
        b'{"x": "last"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING):
        rows = both(path)
    assert [row["x"] for row in rows] == ["a", None, None, None, None, "\U0001f642", None, None, "last"]
    reasons = ["not UTF-8 (byte 0xe9)", "not JSON", "not JSON", "column x: holds half", "must be an object", "not JSON"]
    problems = [row[PROBLEM] for row in rows if PROBLEM in row]
    assert len(problems) == len(reasons)
    assert all(reason in problem for reason, problem in zip(reasons, problems, strict=True))
    assert rows[0]["y"] == 1 and "y" in rows[8] and "column z, which is not needed, holds half" in caplog.text
    path.write_text(json.dumps([{"x": 1}, "text", {"x": [2]}]))
    assert [row.get(PROBLEM) for row in both(path)] == [None, "must be an object, got str", None]
    path.write_text('[1, 2]\n{"x": 1}\n{"x": 1, "x": 2}\n')
    wanted = ["must be an object, got list", None, "not JSON: the key 'x' is there twice"]
    assert [row.get(PROBLEM) for row in Frame([open_rows(str(path), NEEDED)]).rows(range(3))] == wanted


def test_files_that_are_no_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data, reason in (
        (b"PAR1 nonsense", "cannot be read"),
        (b"", "must be parquet, JSON lines, a JSON list or a tar shard"),
        (b"a,b\n", "must be parquet"),
        (POINTER, "git lfs pull"),
        ("\ufeff{}".encode("utf-16-le"), "must be parquet"),
        (b"[{", "cannot be read"),
        (gzip.compress(b'{"x": 1}'), "compressed with gzip: unpack it first"),
        (b'{\n "x": 1\n}\n', "no line is a row, .*; first: not JSON"),
        (b"".join(b'{"c%d": 1}\n' % n for n in range(1001)), "more than 1000 different fields"),
    ):
        path.write_bytes(data)
        for read in (lambda: open_rows(str(path), NEEDED), lambda: list(chunks_of(str(path), NEEDED, ()))):
            with pytest.raises(DataError, match=reason):
                read()
    (tmp_path / "a.jsonl").write_bytes('{"x": 1}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16: save it as UTF-8"):
        open_rows(str(tmp_path / "a.jsonl"), NEEDED)
    (tmp_path / "a.parquet").write_bytes(POINTER)
    with pytest.raises(DataError, match="git lfs pull"):
        open_rows(str(tmp_path / "a.parquet"), NEEDED)
    (tmp_path / "a.jsonl").write_bytes('{"x": 1}\n'.encode("utf-16-le"))
    with pytest.raises(DataError, match="as in UTF-16: save it as UTF-8"):
        open_rows(str(tmp_path / "a.jsonl"), NEEDED)
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="column x is there twice"):
        open_rows(str(tmp_path / "twice.parquet"), NEEDED)
    pq.write_table(pa.table({"y": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="column x is missing; found: y"):
        list(chunks_of(str(tmp_path / "other.parquet"), NEEDED, ("x",)))


@pytest.mark.parametrize("name", [FILE, ROW, PROBLEM])
def test_names_by_which_rows_are_marked_are_no_columns(name: str, tmp_path: Path) -> None:
    """A value there would be taken for our own: a place, or why the row is bad."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1], name: ["fine"]}), path)
    for read in (lambda: open_rows(str(path), NEEDED), lambda: list(chunks_of(str(path), NEEDED, ()))):
        with pytest.raises(DataError, match=f"column {name} has a name by which this package marks rows: rename it"):
            read()
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ({"x": 1}, {"x": 2, name: [True]}, {"x": 3, name: "a"})))
    for rows in (both(lines), Frame([open_rows(str(lines), NEEDED)]).rows(range(3))):
        assert [row.get(PROBLEM, "").split(":")[0] for row in rows] == [
            "",
            *[f"field {name} has a name by which this package marks rows"] * 2,
        ]
        assert [row[ROW] for row in rows] == [0, 1, 2]


def test_a_hole_at_the_end_of_lines_costs_one_row(tmp_path: Path) -> None:
    """Zeros, as a crash or a full disk leaves them, are no encoding."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n' + bytes(4096))
    rows = both(path)
    assert [row["x"] for row in rows] == [1, None] and rows[1][PROBLEM].startswith("not JSON")


def test_rows_of_several_files_have_all_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(150), "y": ["a"] * 150}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"x": n, "z": [n]}) + "\n" for n in range(150, 200)))
    frame = Frame([open_rows(str(tmp_path / name), NEEDED) for name in ("a.parquet", "b.jsonl")])
    assert [row["x"] for row in frame] == list(range(200)) and len(frame) == 200
    assert frame[149] == {"x": 149, "y": "a", "z": None, FILE: 0, ROW: 149}
    assert frame[150] == {"x": 150, "y": None, "z": [150], FILE: 1, ROW: 0}
    order = np.random.default_rng(0).permutation(200)
    chosen = pickle.loads(pickle.dumps(frame.select(order)))
    assert [row["x"] for chunk in chosen.chunks() for row in chunk] == order.tolist()
    assert [row["x"] for row in chosen.select([5, 3, 3])] == order[[5, 3, 3]].tolist()


def test_the_cache_is_used_until_the_file_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    for value in (1, 2):
        pq.write_table(pa.table({"x": [value] * value}), path)
        assert [row["x"] for row in Frame([open_rows(str(path), NEEDED)])] == [value] * value
    assert len(list((cache / "verl_uae").iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(module, "parquet_batches", lambda path: pytest.fail("read again"))
        assert len(open_rows(str(path), NEEDED)) == 2
    monkeypatch.setenv("HF_DATASETS_CACHE", "/proc/none")
    with pytest.raises(
        DataError, match=r"/proc/none/verl_uae: the cache of data files cannot be written: .*HF_DATASETS"
    ):
        open_rows(str(path), NEEDED)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_damaged_copy_in_the_cache_is_made_anew(keep: float, tmp_path: Path, cache: Path) -> None:
    pq.write_table(pa.table({"x": list(range(200))}), tmp_path / "a.parquet")
    wanted = both(tmp_path / "a.parquet")
    (copy,) = cache.rglob("*.arrow")
    whole = copy.read_bytes()
    copy.write_bytes(whole[: int(keep * len(whole) if 0 < keep < 1 else keep)])
    assert both(tmp_path / "a.parquet") == wanted and copy.read_bytes() == whole


def test_lines_that_change_under_a_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n{"x": 2}\n')
    frame = Frame([open_rows(str(path), NEEDED)])
    assert frame[1]["x"] == 2
    path.write_text('{"x": 100}\n{"x": 2}\n')
    with pytest.raises(DataError, match="has changed since its rows were checked"):
        frame[1]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.jsonl", "a.tar"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="not a regular file"):
            file_kind(tmp_path / name)


def test_a_column_of_a_file_is_its_values(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3], "x": text_column([b"a", b"\xff", b"c"])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(column_of(str(tmp_path / "a.parquet"), "x")) == ["a", None, "c"]
    (tmp_path / "a.jsonl").write_text('{"x": "a"}\n{\n{"x": "c"}\n')
    assert list(column_of(str(tmp_path / "a.jsonl"), "x")) == ["a", None, "c"]
    for name in ("a.parquet", "a.jsonl"):
        with pytest.raises(DataError, match="column z is missing"):
            list(column_of(str(tmp_path / name), "z"))


def test_the_kind_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: cannot be read"):
        file_kind(tmp_path / "none")
    (tmp_path / "a").write_bytes(bytes(257) + b"ustar")
    assert file_kind(tmp_path / "a") == "tar"
    with pytest.raises(DataError, match="is a tar shard; only uae_pretrain"):
        open_rows(str(tmp_path / "a"), NEEDED)


def test_a_column_is_read_without_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"a": list(range(200)), "picture": [b"p"] * 200}), tmp_path / "0.parquet")
    (tmp_path / "1.jsonl").write_text('{"a": -1}\n{"b": 2}\n')
    pq.write_table(pa.table({"b": [1, 2]}), tmp_path / "2.parquet")
    files = [str(tmp_path / name) for name in ("0.parquet", "1.jsonl", "2.parquet")]
    frame = Frame([open_rows(name, NEEDED) for name in files])
    read: set[str] = set()
    wrapped = module.python_rows
    monkeypatch.setattr(
        module, "python_rows", lambda batch, *rest: read.update(batch.schema.names) or wrapped(batch, *rest)
    )
    assert list(frame.column("a")) == [*range(200), -1, None, None, None] and read == {"a"}
    assert list(frame.select([203, 3, 200, 2]).column("a")) == [None, 3, -1, 2]


@pytest.mark.parametrize("null", ["name", "path"])
def test_lists_of_structs_with_a_field_that_is_always_null_are_read(null: str, tmp_path: Path) -> None:
    """Two turns of a prompt without names, or two pictures without paths: Arrow cannot cast such a column."""
    rows = [{"index": n, "turns": [{"role": "system", null: None}, {"role": "user", null: None}]} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "turns.parquet")
    (batch,) = (found for found in parquet_batches(str(tmp_path / "turns.parquet")) if len(found))
    assert batch.to_pylist() == rows
