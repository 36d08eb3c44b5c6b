# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_uae.cli import main
from verl_uae.compat import ensure_torchvision
from verl_uae.data.schema import row_schema
from verl_uae.scenes.tokenizer import build_processor


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path, make_picture: Callable) -> Path:
    (tmp_path / "in").mkdir()
    for seed in range(4):
        make_picture(seed=seed).save(tmp_path / "in" / f"{seed}.png")
    (tmp_path / "in" / "page.html").write_text("<html>")
    return tmp_path / "in"


def test_pack_then_check(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "prompt.txt").write_text("Say what you see.\n")
    out = tmp_path / "out"
    assert run("pack", folder, "--out", out, "--val-fraction", 0.4, "--prompt-file", tmp_path / "prompt.txt") == 0
    printed = capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["bad"] == 1
    assert "1 of 5 files left out" in printed and "quarantine.jsonl" in printed
    row = pq.read_table(out / "train.parquet").to_pylist()[0]
    assert row["prompt"][-1]["content"] == "<image>\nSay what you see."
    assert run("check", out / "train.parquet") == 0
    assert "0 bad" in capsys.readouterr().out


def test_pack_reads_what_editors_write(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompt, captions = tmp_path / "prompt.txt", tmp_path / "captions.jsonl"
    prompt.write_bytes("\ufeffDescribe.\r\n".encode())
    captions.write_bytes(
        '\ufeff{"file": ".\\\\0.png", "caption": "zero"}\r\n{"file": "x.png", "caption": "-"}\r\n'.encode()
    )
    (folder / "1.txt").write_text("one")
    out = tmp_path / "out"
    words = ("pack", folder, "--val-fraction", 0, "--prompt-file", prompt, "--overwrite", "--out", out)
    assert run(*words, "--captions", captions) == 0
    printed = capsys.readouterr().out
    assert (
        "1 captions not used, see" in printed
        and "1 texts beside pictures not read; with --sidecars, in place of --captions, they" in printed
    )
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert rows[0]["prompt"][-1]["content"] == "<image>\nDescribe."
    assert [row["extra_info"]["caption"] for row in rows] == ["zero", None, None, None]
    assert {"x.png", "1.txt"} <= {json.loads(line)["file"] for line in (out / "quarantine.jsonl").open()}
    assert run(*words, "--sidecars") == 0
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert [row["extra_info"]["caption"] for row in rows] == [None, "one", None, None]
    prompt.write_text("<image> Describe <|image_pad|>.")
    capsys.readouterr()
    assert run(*words) == 2
    message = "verl-uae: prompt: column prompt: message 1 contains the special token <|image_pad|>\n"
    assert capsys.readouterr().err == message


def test_check_takes_what_training_takes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run("pack", folder, "--out", tmp_path / "out", "--val-fraction", 0)
    rows = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    lines = [json.dumps({"prompt": row["prompt"], "images": [f"in/{n}.png"]}) for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    capsys.readouterr()
    assert run("check", tmp_path / "rows.jsonl", "--max-bad", 1) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("5 rows, 1 bad")
    assert run("check", tmp_path / "rows.jsonl", "--max-bad", 1, "--pairs") == 1
    assert "column extra_info: caption is missing" in capsys.readouterr().out
    ensure_torchvision()
    build_processor().save_pretrained(tmp_path / "model")
    for model, code in ((tmp_path / "model", 0), (tmp_path / "none", 2), (tmp_path / "in", 2)):
        assert run("check", tmp_path / "out/train.parquet", "--model", model) == code
    assert capsys.readouterr().err.count("verl-uae: --model") == 2


def test_check_names_bad_rows(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run("pack", folder, "--out", tmp_path / "out", "--val-fraction", 0)
    rows = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    rows[1]["images"][0]["bytes"] = b"GIF89a"
    rows[2]["prompt"] = []
    broken = tmp_path / "broken.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=row_schema()), broken)
    capsys.readouterr()
    assert run("check", broken, "--quarantine", tmp_path / "q.jsonl") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{broken}, row 1: column images: format GIF")
    assert lines[1].startswith(f"{broken}, row 2: column prompt") and lines[2].endswith("4 rows, 2 bad")
    assert [json.loads(line)["row"] for line in (tmp_path / "q.jsonl").read_text().splitlines()] == [1, 2]
    assert run("check", broken, "--max-bad", 2) == 0
    assert run("check", broken, "--max-bad", 2, "--min-side", 90) == 1


def test_errors_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    (tmp_path / "empty").write_text(" \n")
    for words, reason in (
        (("check", tmp_path / "absent.parquet"), "absent.parquet: there is no such file"),
        (("check", tmp_path / "bad.parquet"), "bad.parquet: cannot be read"),
        (("check", tmp_path / "other.parquet"), "column images is missing; found: text"),
        (("check", tmp_path / "other.parquet", "--max-image-pixels", 10**10), "max_pixels must lie in"),
        (("pack", tmp_path / "absent", "--out", tmp_path / "o"), "absent: there is no such folder"),
        (("pack", folder, "--out", tmp_path / "o", "--val-fraction", 2), "val_fraction"),
        (("check", tmp_path / "other.parquet", "--min-side", 0), "--min-side"),
        (("check", tmp_path / "other.parquet", "--max-bad", -1), "--max-bad: must be at least 0, got -1"),
        (("pack", folder, "--out", tmp_path / "o", "--prompt-file", tmp_path / "no"), "no: cannot be read"),
        (("pack", folder, "--out", tmp_path / "o", "--prompt-file", tmp_path / "empty"), "empty: is empty"),
    ):
        assert run(*words) == 2, words
        printed = capsys.readouterr().err
        assert printed.startswith("verl-uae: ") and reason in printed and printed.count("\n") == 1


def test_pack_writes_shards(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps({"file": f"{n}.png", "caption": f"no. {n}"}) + "\n" for n in range(4)))
    words = ("pack", folder, "--out", tmp_path / "out", "--val-fraction", 0, "--format", "webdataset")
    assert run(*words) == 2 and "captions are needed" in capsys.readouterr().err
    assert run(*words, "--captions", captions, "--shard-size", 3) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["train-000000.tar", "train-000001.tar"]


def test_arguments_that_cannot_be_used_are_named_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert run("pack", folder, "--out", out, "--data-source", "caf\udce9") == 2
    assert "--data-source: is not UTF-8" in capsys.readouterr().err
    assert run("pack", folder, "--out", out) == 0
    for quarantine, reason in ((tmp_path / "none" / "q.jsonl", "there is no such folder"), (tmp_path, "is a folder")):
        assert run("check", out / "train.parquet", "--quarantine", quarantine) == 2
        assert reason in capsys.readouterr().err
