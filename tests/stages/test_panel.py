# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

from tests.samples import caption, scored
from verl_uae.chain.records import Sample
from verl_uae.checkpoints.names import RUN_PAGE
from verl_uae.data.images import encode_jpeg, encode_shown
from verl_uae.stages.common.panel import PanelRow, PanelWriter, render

NASTY = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=y>"


def jpeg(seed: int, height: int = 32, width: int = 32) -> bytes:
    return encode_jpeg(torch.from_numpy(np.random.default_rng(seed).random((3, height, width), dtype=np.float32)))


def row(**changes) -> PanelRow:
    fields = {
        "source": jpeg(0),
        "caption": "a circle",
        "reconstruction": jpeg(1),
        "reward": 0.5,
        "terms": {"pixel": 0.25},
    }
    return PanelRow(**{**fields, **changes})


def test_captions_are_escaped() -> None:
    page = render(3, [row(caption=NASTY, terms={"<b>": 0.5})], {})
    assert "<script" not in page and "onerror=y>" not in page and "<b> " not in page
    assert str(escape(NASTY)) in page and "&lt;b&gt; 0.5000" in page


def test_a_page_is_self_contained_and_shows_every_row() -> None:
    page = render(7, [row(), row(reward=None)], {})
    assert page.count("data:image/jpeg;base64,") == 4 and "://" not in page
    assert "Step 7" in page and "reward 0.5000" in page and "reward –" in page and page.count("pixel 0.2500") == 2


def test_pictures_of_both_samplers_have_their_names() -> None:
    page = render(7, [row(explored=jpeg(2)), row()], {})
    labels = [re.findall(r"<figcaption>(.*?)</figcaption>", card) for card in page.split("<section")[1:]]
    assert labels == [["original", "eval sampler", "train sampler"], ["original", "eval sampler"]]


@pytest.mark.parametrize(("side", "shown", "kind"), [(32, 192, "png"), (256, 256, "jpeg"), (1024, 384, "jpeg")])
def test_small_pictures_are_sharp_and_enlarged_and_large_ones_are_no_burden(side: int, shown: int, kind: str) -> None:
    pixels = encode_shown(torch.from_numpy(np.random.default_rng(0).random((3, side, side), dtype=np.float32)))
    page = render(1, [row(source=pixels, reconstruction=pixels)], {})
    assert f"--side: {shown}px" in page and page.count(f"data:image/{kind};base64,") == 2
    assert page.count('class="sharp"') == (2 if kind == "png" else 0)


def test_panels_lead_to_each_other_and_to_the_run(tmp_path: Path) -> None:
    writer = PanelWriter(str(tmp_path / "panels"), str(tmp_path / "index.html"))
    (tmp_path / "panels").mkdir()
    (tmp_path / "panels" / "step_000001.html").write_bytes(b"\xff mine </nav>")
    first, second = (writer.write(step, [row()]) for step in (2, 10))
    writer.write(10, [row()])

    def links(page: Path) -> list[str]:
        return re.findall(r'<a href="(.*?)">(.*?)</a>', page.read_text(encoding="utf-8"))

    run = ("../index.html", "the run")
    assert links(first) == [run, ("step_000001.html", "step 1"), ("step_000010.html", "step 10")]
    assert links(second) == [run, ("step_000002.html", "step 2")]
    assert (tmp_path / "panels" / "step_000001.html").read_bytes() == b"\xff mine </nav>"


def test_the_strip_has_originals_above_reconstructions(tmp_path: Path) -> None:
    def plain(red: float, height: int = 32, width: int = 32) -> bytes:
        return encode_shown(torch.tensor([red, 0.0, 0.0]).reshape(3, 1, 1).expand(3, height, width))

    rows = [
        row(source=plain(0.25), reconstruction=plain(0.5)),
        row(source=plain(1.0, 32, 64), reconstruction=plain(0.75)),
    ]
    path = PanelWriter(str(tmp_path), str(tmp_path / RUN_PAGE)).write(1, rows)
    with Image.open(path.with_suffix(".png")) as found:
        assert found.size == (256, 256)
        reds = [found.getpixel(place)[0] for place in ((64, 64), (64, 192), (192, 64), (192, 192), (192, 10))]
    assert reds == [64, 128, 255, 191, 0], "a wide picture is padded"


def test_is_published_by_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PanelWriter(str(tmp_path / "new" / "panels"), str(tmp_path / RUN_PAGE))
    path = writer.write(12, [row()])
    names = ["step_000012.html", "step_000012.png"]
    assert path.name == names[0] and sorted(file.name for file in path.parent.iterdir()) == names
    before = path.read_text()
    monkeypatch.setattr("verl_uae.stages.common.panel.render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.write(12, [row()])
    assert path.read_text() == before


def test_a_row_from_a_sample(tmp_path: Path) -> None:
    source = Image.new("L", (64, 48), 200)
    made = PanelRow.of_sample(Sample(source, caption(NASTY)), scored(0.5, picture=jpeg(1)))
    assert made.caption == NASTY and made.reward == 0.5
    (tmp_path / "source.jpg").write_bytes(made.source)
    with Image.open(tmp_path / "source.jpg") as shown:
        assert shown.size == (32, 32) and abs(shown.getpixel((16, 16))[0] - 200) <= 2


def test_pictures_go_to_tensorboard(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    summary = tensorboard.SummaryWriter(str(tmp_path / "tb"))
    tracking = SimpleNamespace(logger={"tensorboard": SimpleNamespace(writer=summary)})
    PanelWriter(str(tmp_path), str(tmp_path / RUN_PAGE)).write(5, [row(), row()], tracking)
    summary.close()
    accumulator = event.EventAccumulator(str(tmp_path / "tb"))
    accumulator.Reload()
    tags = accumulator.Tags()["images"]
    assert tags and all(tag.startswith("panel/source_and_reconstruction") for tag in tags)
    images = accumulator.Images(tags[0])
    assert images[0].step == 5 and (images[0].width, images[0].height) == (128, 32), "two pairs side by side"


def test_a_caption_that_cannot_be_encoded_is_shown_with_escapes(tmp_path: Path) -> None:
    path = PanelWriter(str(tmp_path), str(tmp_path / RUN_PAGE)).write(1, [row(caption="red \ud83d <b>")])
    assert "red \\ud83d &lt;b&gt;" in path.read_text(encoding="utf-8")
