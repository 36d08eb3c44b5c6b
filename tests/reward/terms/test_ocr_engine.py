# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.reward.terms.test_ocr import write_picture
from verl_uae.errors import ConfigError
from verl_uae.reward.terms.caption import MAX_ASPECT, RapidReader, TextReader, check_engine, load_engine

OWN = """
class Sign:
    def __init__(self, text="STOP"):
        self.text = text
    def read(self, image):
        return [(self.text, 1.0)]
def nothing():
    return 3
"""


@pytest.fixture(scope="module")
def reader() -> RapidReader:
    return RapidReader(short_side=256)


@pytest.mark.parametrize(
    "lines", [["OPEN DAILY", "9 am to 5 pm"], ["Sale 2019"], ["The quick brown fox", "jumps over", "the lazy dog"]]
)
def test_rendered_text_is_read_back_exactly_and_in_order(reader: RapidReader, lines: list[str]) -> None:
    found = reader.read(write_picture(lines))
    assert [text for text, _ in found] == lines
    assert all(0.8 < confidence <= 1.0 for _, confidence in found)


def test_the_engine_gets_what_it_would_load_from_a_file(reader: RapidReader, tmp_path: Path, monkeypatch) -> None:
    from rapidocr.utils.load_image import LoadImage

    picture, given = write_picture(["HELLO"], ink=(255, 255, 0), paper=(0, 0, 160)), []
    picture.save(tmp_path / "picture.png")
    engine = reader._engine
    monkeypatch.setattr(reader, "_engine", lambda array: given.append(array) or engine(array))
    assert [text for text, _ in reader.read(picture)] == ["HELLO"]
    assert np.array_equal(given[0], LoadImage()(tmp_path / "picture.png"))
    assert [text for text, _ in reader.read(picture.convert("L"))] == ["HELLO"]


def test_no_text(reader: RapidReader) -> None:
    assert reader.read(Image.new("RGB", (64, 64), "green")) == []


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (2000, 40), (40, 2000), (1, 1)])
def test_a_narrow_picture_does_not_grow_without_end(reader: RapidReader, size: tuple[int, int]) -> None:
    """RapidOCR enlarges the shorter side: its detector was given 13 million pixels of a strip of 200."""
    reader.read(Image.new("RGB", (64, 64)))
    detector = reader._engine.text_det
    given, session = [], detector.session
    detector.session = lambda array: given.append(array.shape) or session(array)
    try:
        assert reader.read(Image.new("RGB", size, "green")) == []
    finally:
        detector.session = session
    assert given and all(shape[2] * shape[3] <= 256 * 256 * (MAX_ASPECT + 1) for shape in given)


def test_text_in_a_strip_is_still_read(reader: RapidReader) -> None:
    strip = Image.new("RGB", (60, 900), "white")
    strip.paste(write_picture(["EXIT"]).resize((60, 30)), (0, 440))
    picture = Image.new("RGB", (900, 60), "white")
    picture.paste(write_picture(["OPEN DAILY"]).resize((150, 60)), (300, 0))
    assert [text for text, _ in reader.read(picture)] == ["OPEN DAILY"]
    assert len(reader.read(strip)) <= 1


def test_another_engine(tmp_path: Path) -> None:
    path = tmp_path / "engine.py"
    path.write_text(OWN)
    check_engine(f"{path}:Sign", "key")
    reader = load_engine(f"{path}:Sign", {"text": "EXIT"})
    assert isinstance(reader, TextReader) and reader.read(Image.new("RGB", (8, 8))) == [("EXIT", 1.0)]


@pytest.mark.parametrize(
    ("engine", "params", "text"),
    [
        ("tesseract", {}, r"must be 'rapidocr', FILE.py:name or package.module:name, got 'tesseract'"),
        ("FILE:", {}, "must be 'rapidocr'"),
        ("FILE:Absent", {}, "has no class or function 'Absent'"),
        ("FILE:Sign", {"size": 3}, r"cannot be made with {'size': 3}"),
        ("FILE:nothing", {}, r"makes a int, which has no read\(image\)"),
        ("/no/file.py:Sign", {}, "cannot read"),
        ("rapidocr", {"size": 3}, "cannot be made with"),
    ],
)
def test_engines_that_are_refused(tmp_path: Path, engine: str, params: dict, text: str) -> None:
    path = tmp_path / "engine.py"
    path.write_text(OWN)
    with pytest.raises(ConfigError, match=text) as caught:
        load_engine(engine.replace("FILE", str(path)), params, "my.key")
    assert caught.value.key == "my.key"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs rapidocr and onnxruntime: pip install 'rapidocr>=3\.10,<4'"):
        check_engine("rapidocr", "key")
