# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bench.results import make_result, same_columns
from tests.pipeline.conftest import picture
from verl_uae.bench.pairs import Failure, Pair
from verl_uae.bench.report import data_uri, rank, write_report

CAPTION = '<script>alert("1")</script> & <img src=x onerror=y>'


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def write(root: Path, content: dict[str, Any], count: int = 8) -> Page:
    pairs = [
        Pair(root / pair["name"], root / pair["reference"], pair["reference"], pair["sha256"])
        for pair in content["verl_uae"]["pairs"]
    ]
    write_report(root / "report.html", content, pairs, count)
    return Page(root / "report.html")


@pytest.fixture
def root(tmp_path: Path, save: Callable[..., Path]) -> Path:
    for index in range(5):
        save(tmp_path / f"{index}.png", index)
        save(tmp_path / f"recon_{index}.png", index + 10)
    return tmp_path


def test_worst_and_best_pairs_in_order(root: Path) -> None:
    content = make_result(same_columns([0.5, 0.1, 0.9, 0.3, 0.7]), [CAPTION] * 5)
    assert [name for name, _ in rank(content)] == [f"recon_{index}.png" for index in (1, 3, 0, 4, 2)]
    page = write(root, content, count=2)
    shown = re.findall(r"<b>([\d.]+)</b> (\d).png", page.source)
    assert shown == [("10.00", "1"), ("30.00", "3"), ("90.00", "2"), ("70.00", "4")]
    # With room for all, no pair is shown twice.
    assert re.findall(r"</b> (\d).png", write(root, content).source) == ["1", "3", "0", "2", "4"]
    assert "50.00" in page.text and "Overall" in page.text and "Incomplete" not in page.text


def test_captions_are_escaped_and_nothing_is_loaded(root: Path) -> None:
    page = write(root, make_result(same_columns([0.5] * 5), [CAPTION] * 5))
    assert CAPTION in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 10 and all(entry["src"].startswith("data:image/jpeg;base64,") for entry in images)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(entry["content"] for tag, entry in page.tags if "http-equiv" in entry)
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "http://" not in page.source and "https://" not in page.source


def test_names_of_files_are_escaped(root: Path, save: Callable[..., Path]) -> None:
    content = make_result(same_columns([0.5] * 5))
    content["verl_uae"]["pairs"][0]["reference"] = save(root / "<i>&amp;.png").name
    page = write(root, content)
    assert "<i>&amp;.png" in page.text and "i" not in {tag for tag, _ in page.tags}


def test_failures_are_listed_and_pairs_without_value_are_not_shown(root: Path) -> None:
    content = make_result(
        {"clip": [0.5, None, 0.9, 0.3, 0.7], "dinov2": [0.5] * 5}, failures=[Failure("<b.png>", "no & no")]
    )
    page = write(root, content)
    assert "<b.png>: no & no" in page.text and "there is no overall score" in page.text
    assert "</b> 1.png" not in page.source and "4 of 5" in page.text and "Overall" not in page.text


def test_pictures_are_inside_and_not_larger_than_needed(tmp_path: Path) -> None:
    picture(0, 640, 400).save(tmp_path / "large.png")
    picture(1, 40, 30).save(tmp_path / "small.png")
    sizes = {}
    for name in ("large", "small"):
        uri = data_uri(tmp_path / f"{name}.png")
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        sizes[name] = image.size
        with Image.open(tmp_path / f"{name}.png") as original:
            difference = np.asarray(original.resize(image.size), dtype=float) - np.asarray(image, dtype=float)
        assert np.abs(difference).mean() < 12
    assert sizes == {"large": (320, 200), "small": (40, 30)}
