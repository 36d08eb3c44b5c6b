# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bench.external.conftest import GENEVAL, REWRITTEN, write_lines
from tests.chain.conftest import picture
from verl_uae.bench.external.prompts import LAYOUTS, grid, read_prompts
from verl_uae.errors import ConfigError, DataError


def test_geneval_counts_from_five_zeros_and_genevalpp_from_one(geneval_file: Path, genevalpp_file: Path) -> None:
    geneval, genevalpp = read_prompts("geneval", geneval_file), read_prompts("genevalpp", genevalpp_file)
    assert list(geneval.prompts) == ["00000", "00001", "00002"]
    assert list(genevalpp.prompts) == ["1", "2", "3"]
    assert [prompt.metadata for prompt in geneval.prompts.values()] == GENEVAL and geneval.name == "original"
    assert [prompt.tag for prompt in genevalpp.prompts.values()] == ["color_attr", "color_attr", "counting"]
    assert geneval.source["source"]["sha256"] == hashlib.sha256(geneval_file.read_bytes()).hexdigest()


def test_dpg_takes_the_names_of_files(dpg_folder: Path) -> None:
    found = read_prompts("dpg", dpg_folder)
    assert [(key, prompt.text) for key, prompt in found.prompts.items()] == [
        ("10", "a red circle above a blue square"),
        ("2", "green triangle"),
        ("partiprompts97", "a corgi"),
    ]
    before = found.source["source"]["sha256"]
    (dpg_folder / "2.txt").write_text("green triangles")
    assert read_prompts("dpg", dpg_folder).source["source"]["sha256"] != before


@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_rewritten_prompts_are_drawn_and_the_metadata_stays(geneval_file: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"rewritten.{form}"
    lines = [json.dumps(line | {"prompt": text}) for line, text in zip(GENEVAL, REWRITTEN, strict=True)]
    path.write_text("\n".join(lines if form == "jsonl" else REWRITTEN))
    found = read_prompts("geneval", geneval_file, path)
    assert found.name == "rewritten" and [prompt.drawn for prompt in found.prompts.values()] == REWRITTEN
    assert [prompt.metadata for prompt in found.prompts.values()] == GENEVAL


def test_rewritten_prompts_of_dpg_go_by_name(dpg_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "10.txt").write_text("ten")
    (other / "2.txt").write_text("two")
    with pytest.raises(DataError, match=r"partiprompts97\.txt: missing"):
        read_prompts("dpg", dpg_folder, other)
    (other / "partiprompts97.txt").write_text("corgi")
    assert [prompt.drawn for prompt in read_prompts("dpg", dpg_folder, other).prompts.values()] == [
        "ten",
        "two",
        "corgi",
    ]


def test_rewritten_prompts_in_another_order_are_refused(geneval_file: Path, tmp_path: Path) -> None:
    swapped = write_lines(tmp_path / "swapped.jsonl", [GENEVAL[1], GENEVAL[0], GENEVAL[2]])
    with pytest.raises(DataError, match="row 0: its include is not that of the original"):
        read_prompts("geneval", geneval_file, swapped)
    short = write_lines(tmp_path / "short.jsonl", GENEVAL[:2])
    with pytest.raises(DataError, match="has 2 prompts for 3 originals"):
        read_prompts("geneval", geneval_file, short)


def test_equal_prompts_are_told_apart(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "twice.jsonl", [GENEVAL[0], GENEVAL[1], GENEVAL[0]])
    assert [prompt.occurrence for prompt in read_prompts("geneval", path).prompts.values()] == [0, 0, 1]


def test_a_separator_inside_a_prompt_ends_no_line(tmp_path: Path) -> None:
    line = json.dumps({"tag": "counting", "prompt": "one\u2028two"}, ensure_ascii=False)
    path = tmp_path / "odd.jsonl"
    path.write_text(f"{line}\n\n{line}\n", encoding="utf-8")
    assert [prompt.text for prompt in read_prompts("geneval", path).prompts.values()] == ["one\u2028two"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tag": "a", "prompt": "x"}\nnot json', "row 1: is no JSON"),
        ('{"tag": "a", "prompt": " "}', "row 0: has no prompt"),
        ('{"prompt": "x"}', "row 0: has no tag"),
        ("[1]", "row 0: has no prompt"),
        ("\n", "has no prompts"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_prompts("geneval", path)


def test_a_file_of_another_encoding_is_named(dpg_folder: Path, tmp_path: Path) -> None:
    (dpg_folder / "2.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "old.jsonl").write_bytes(b'{"tag": "a", "prompt": "caf\xe9"}')
    for bench, path, name in (("dpg", dpg_folder, "2.txt"), ("geneval", tmp_path / "old.jsonl", "old.jsonl")):
        with pytest.raises(DataError, match=f"{name}: cannot be read: byte 0xe9 in line 1 is not UTF-8"):
            read_prompts(bench, path)  # type: ignore[arg-type]


def test_a_name_the_scorer_would_cut_is_refused(dpg_folder: Path, tmp_path: Path) -> None:
    (dpg_folder / "a.b.txt").write_text("text")
    with pytest.raises(DataError, match="up to the first point"):
        read_prompts("dpg", dpg_folder)
    with pytest.raises(ConfigError, match="not a folder"):
        read_prompts("dpg", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not a file"):
        read_prompts("geneval", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="must be one of geneval"):
        read_prompts("wise", dpg_folder)  # type: ignore[arg-type]


def test_names_are_those_the_scorers_look_for(geneval_file: Path, genevalpp_file: Path, dpg_folder: Path) -> None:
    """The patterns are those of evaluate_images.py and Eval-gpt-4.1-geneval++.py, and the name of the prompt."""
    found = read_prompts("geneval", geneval_file).prompts["00000"]
    names = [picture["file"] for picture in LAYOUTS["geneval"].pictures("00000", found, 4)]
    assert names == [f"00000/samples/000{n}.png" for n in range(4)]
    assert all(name.split("/")[0].isdigit() and re.match(r"\d+\.png", name.split("/")[-1]) for name in names)
    two = read_prompts("genevalpp", genevalpp_file).prompts["2"]
    assert [picture["file"] for picture in LAYOUTS["genevalpp"].pictures("2", two, 1)] == ["2.jpg"]
    (sheet,) = LAYOUTS["dpg"].pictures("10", read_prompts("dpg", dpg_folder).prompts["10"], 4)
    assert sheet["file"] == "10.png" and sheet["samples"] == [0, 1, 2, 3]
    for layout, name in (("geneval", names[0]), ("genevalpp", "2.jpg"), ("dpg", "10.png")):
        assert re.fullmatch(LAYOUTS[layout].owned, name)


def test_samples_lie_in_the_grid_where_the_scorer_crops_them() -> None:
    """The crops of compute_dpg_bench.py for a resolution of 32."""
    images = [picture(n) for n in range(4)]
    crops = [(0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64)]
    sheet = grid(images)
    assert sheet.size == (64, 64)
    for image, crop in zip(images, crops, strict=True):
        assert np.array_equal(np.asarray(sheet.crop(crop)), np.asarray(image))
    assert grid(images[:3]).size == (64, 64) and grid(images[:2]).size == (64, 32)


def test_png_is_exact_and_jpeg_nearly() -> None:
    image = picture(3)
    exact = Image.open(io.BytesIO(LAYOUTS["geneval"].encode([image])))
    assert exact.format == "PNG" and np.array_equal(np.asarray(exact), np.asarray(image))
    near = Image.open(io.BytesIO(LAYOUTS["genevalpp"].encode([image])))
    assert near.format == "JPEG"
    assert np.abs(np.asarray(near, dtype=float) - np.asarray(image, dtype=float)).mean() < 3


def test_what_a_scorer_cannot_read_is_refused(geneval_file: Path, genevalpp_file: Path, dpg_folder: Path) -> None:
    assert read_prompts("geneval", geneval_file, samples=9).samples == 9
    sources = {"geneval": (geneval_file, 0), "genevalpp": (genevalpp_file, 2), "dpg": (dpg_folder, 5)}
    for bench, (source, samples) in sources.items():
        with pytest.raises(ConfigError, match=rf"--samples.*for {bench}, got {samples}"):
            read_prompts(bench, source, samples=samples)  # type: ignore[arg-type]
