# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.bench.results import make_result, same_columns
from tests.chain.conftest import picture
from tests.chain.test_cli import MODEL_OPTIONS
from verl_uae.bench.backbones import choose
from verl_uae.bench.pairs import captions_by_key, find_pairs
from verl_uae.bench.results import Failure
from verl_uae.bench.unified import read_unified, score
from verl_uae.cli import main
from verl_uae.data.captions import read_captions
from verl_uae.files import write_json

FAST = ["--device", "cpu", "--steps", "2", "--guidance", "2", "--max-new-tokens", "6", "--seed", "3"]


def bench(*words: object) -> int:
    return main(["bench", *map(str, words)])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index in range(3):
        picture(index).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def test_two_folders(
    folders: tuple[Path, Path],
    backbone_words: list[str],
    backbone_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    generated, originals = folders
    captions = tmp_path / "given.jsonl"
    captions.write_text("".join(json.dumps({"file": f"{n}.png", "caption": "a b"}) + "\n" for n in range(5)))
    words = ["unified", originals, "--generated", generated, "--captions", captions, "--device", "cpu"]
    assert bench(*words, *backbone_words, "--seed", 7, "--out", tmp_path / "out") == 0
    content = read_unified(tmp_path / "out" / "result.json")
    backbones = choose([f"{name}={path}" for name, path in backbone_folders.items()])
    assert content["similarities_by_model"] == score(find_pairs(generated, originals), backbones).similarities
    section = content["verl_uae"]
    assert section["complete"] and section["mean_words"] == 2.0 and section["seeds"]["bootstrap"] == 7
    assert read_captions(tmp_path / "out" / "captions.jsonl") == {f"{n}.png": "a b" for n in range(5)}
    assert "Worst pairs" in (tmp_path / "out" / "report.html").read_text()
    assert f"overall: {section['overall']:.2f}" in capsys.readouterr().out


def test_a_model_folder_is_captioned_drawn_and_scored_and_resumed(
    model_folder: Path, images: Path, backbone_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = ["--model", model_folder, *MODEL_OPTIONS, *FAST, *backbone_words]
    assert bench("unified", images, *model, "--out", tmp_path / "one") == 0
    first = read_unified(tmp_path / "one" / "result.json")
    assert sorted(path.name for path in (tmp_path / "one" / "pictures").iterdir()) == [
        f"recon_{n}.png" for n in range(3)
    ]
    captions = read_captions(tmp_path / "one" / "captions.jsonl")
    assert {pair["reference"]: pair["caption"] for pair in first["verl_uae"]["pairs"]} == captions
    assert first["verl_uae"]["drawing"]["num_inference_steps"] == 2 and first["verl_uae"]["drawing"]["seed"] == 3
    capsys.readouterr()
    assert bench("unified", images, *model, "--out", tmp_path / "one") == 0
    assert "3 reconstructions, 3 of them from before" in capsys.readouterr().err
    assert read_unified(tmp_path / "one" / "result.json") == first
    (tmp_path / "other.jsonl").write_text(
        "".join(json.dumps({"file": f"{n}.png", "caption": "a red circle on blue"}) + "\n" for n in range(3))
    )
    assert bench("unified", images, *model, "--captions", tmp_path / "other.jsonl", "--out", tmp_path / "three") == 0
    third = read_unified(tmp_path / "three" / "result.json")
    assert third["similarities_by_model"] != first["similarities_by_model"] and third["verl_uae"]["mean_words"] == 5.0
    capsys.readouterr()
    assert bench("compare", f"own={tmp_path / 'one' / 'result.json'}", tmp_path / "three" / "result.json") == 0
    table = capsys.readouterr().out
    assert f"| own | 3 | {first['verl_uae']['means']['clip']:.2f} |" in table and "| three | 3 | " in table
    results = [tmp_path / name / "result.json" for name in ("one", "three")]
    assert bench("length", *results, "--tolerance", 100) == 0
    assert "3 of 3 and 3 captions matched within 100 words" in capsys.readouterr().out
    assert bench("compare", *results, "--tolerance", 100) == 0
    head, *_, row = capsys.readouterr().out.splitlines()
    assert "minus one, lengths matched" in head and row.count("; 3)") == 2
    assert bench("compare", *results, "--tolerance", -1) == 2
    assert "--tolerance: must be at least 0 words, got -1" in capsys.readouterr().err
    assert bench("length", *results, "--tolerance", 100, "--same-picture", "--json") == 0
    assert json.loads(capsys.readouterr().out)["matched_same_picture"] == 3


def test_an_incomplete_result_is_exit_code_1_and_says_why(
    model_folder: Path, images: Path, backbone_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "1.png").write_bytes(b"no picture")
    model = ["--model", model_folder, *MODEL_OPTIONS, *FAST, *backbone_words]
    assert bench("unified", images, *model, "--only", "clip", "--out", tmp_path / "out") == 1
    section = read_unified(tmp_path / "out" / "result.json")["verl_uae"]
    assert section["overall"] is None and len(section["failures"]) == 4
    assert section["failures"][0]["reason"].startswith("not an image")
    printed = capsys.readouterr().out
    assert "overall: none, 4 failures" in printed and "dinov3: not asked for" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--generated: give either"),
        (["--generated", "g", "--model", "m"], "--generated: give either"),
        (["--generated", "none"], "--generated: none: there is no such folder"),
        (["--generated", "images", "--backbone", "siglip=x"], "--backbone: must be one of"),
        (["--generated", "images", "--device", "abacus"], "; give a device that this machine has, such as cpu"),
        (["--generated", "images", "--batch-size", "0"], "--batch-size"),
        (["--generated", "images", "--captions", "none.jsonl"], "--captions: none.jsonl: there is no such file"),
        (["--model", "none"], "--model: none: is no folder in"),
        (["--model", "decoder"], "has no captioner"),
        (["--model", "decoder", "--captions", "some.jsonl", "--size", "33"], "--size"),
        (["--model", "decoder", "--steps", "0"], "--steps"),
        (["--model", "decoder", "--temperature", "-1"], "--temperature"),
    ],
    ids=str,
)
def test_errors_are_one_line(
    words: list[str],
    message: str,
    images: Path,
    tiny_models: Path,
    backbone_words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(images.parent)
    shutil.copytree(tiny_models / "decoder", images.parent / "decoder")
    Path("some.jsonl").write_text('{"file": "0.png", "caption": "red"}\n')
    backbones = [] if "--backbone" in words else backbone_words
    assert bench("unified", images, *words, *backbones, "--out", "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("verl-uae: ") and message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--backbone longclip: has no published checkpoint in this format; pass --backbone longclip=FOLDER"),
        (["--backbone", "longclip=./gone"], "there is no such folder"),
        (["--backbone", "longclip=empty"], "holds no config.json that can be read"),
        (["--backbone", "longclip={dinov2}"], "is a 'dinov2' checkpoint, and must be"),
    ],
    ids=str,
)
def test_a_backbone_that_cannot_be_had_is_named_before_anything_is_drawn(
    words: list[str],
    message: str,
    images: Path,
    model_folder: Path,
    backbone_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(images.parent)
    Path("empty").mkdir()
    found = [
        word for name in ("clip", "dinov2", "dinov3") for word in ("--backbone", f"{name}={backbone_folders[name]}")
    ]
    command = ["unified", images, "--model", model_folder, *MODEL_OPTIONS, *FAST, *found, "--out", "out"]
    assert bench(*command, *[word.format(**backbone_folders) for word in words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1] and not Path("out").exists()


def test_a_name_that_the_terminal_cannot_show_is_shown_by_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_result(same_columns([0.5]), failures=[Failure("\udcff\u00e9.png", "broken")])
    write_json(tmp_path / "r.json", content)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", shown)
    assert bench("compare", tmp_path / "r.json") == 0
    shown.flush()
    assert b"r is incomplete: \\udcff\\xe9.png: broken" in shown.buffer.getvalue()  # type: ignore[attr-defined]


def test_captions_of_ready_pictures_by_path_or_by_file_name() -> None:
    given = {"a.png": "of a", "sub/b.png": "of b", "b.png": "of another b"}
    assert captions_by_key(given, ["sub/a.png", "sub/b.png", "c.png"]) == {"sub/a.png": "of a", "sub/b.png": "of b"}


def test_results_that_cannot_be_read_or_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert bench("compare", tmp_path / "none.json") == 2
    assert "none.json: there is no such file" in capsys.readouterr().err


def test_the_paper_is_checked(capsys: pytest.CaptureFixture) -> None:
    assert bench("published") == 0
    lines: list[Any] = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    wrong = [line for line in lines if "does not match" in line]
    assert len(wrong) == 2 and "81.22" in wrong[0] and "82.06" in wrong[1]
