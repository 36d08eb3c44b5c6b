# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.reward.terms.test_ocr import SIDE, write_picture
from tests.rewards.conftest import ROOT
from verl_uae.reward import RewardScorer

BLANK = Image.new("RGB", (SIDE, SIDE), "white")


def test_text_that_comes_back_whole_changed_in_part_and_not_at_all(to_batch) -> None:
    source = write_picture(["GRAND HOTEL", "Room 12"])
    drawn = [write_picture(["Grand Hotel", "room 12"]), write_picture(["GRAND HOTEL"]), BLANK]
    params = {"path": str(ROOT / "rewards/ocr.py")}
    records = RewardScorer([("custom", 1.0, params)]).score(to_batch([source] * 3, drawn))
    # "grand hotel room 12" has 19 characters; " room 12", 8 of them, are missing in the second.
    assert [record.value for record in records] == pytest.approx([1.0, 11 / 19, 0.0])
    assert {record.terms["custom/letters"] for record in records} == {19.0}


def test_a_source_without_text_is_neutral_and_read_once(example, to_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = example("ocr"), []
    module.read_source.cache_clear()
    read = module.reader("rapidocr").read
    monkeypatch.setattr(module.reader("rapidocr"), "read", lambda image: seen.append(1) or read(image), raising=False)
    params = {"path": str(ROOT / "rewards/ocr.py"), "reward_kwargs": {"without_text": 0.5}}
    drawn = [BLANK, write_picture(["TEXT"])]
    records = RewardScorer([("custom", 1.0, params)]).score(to_batch([BLANK] * 2, drawn))
    assert [record.value for record in records] == [0.5, 0.5] and len(seen) == 1


def test_what_is_kept_is_bounded_and_holds_no_reconstruction(example, to_batch, tmp_path: Path) -> None:
    """No reconstruction comes back, and a cache of pictures is memory of every rank."""
    module = example("ocr")
    (tmp_path / "engine.py").write_text(
        "class Reader:\n    def read(self, image):\n        return [(f'word {image.getpixel((0, 0))[0]}', 1.0)]\n"
    )
    module.read_source.cache_clear()
    sources = [Image.new("RGB", (8, 8), (shade,) * 3) for shade in range(100)]
    params = {"path": str(ROOT / "rewards/ocr.py"), "reward_kwargs": {"engine": f"{tmp_path}/engine.py:Reader"}}
    drawn = [Image.new("RGB", (8, 8), (200 - shade,) * 3) for shade in range(100)]
    RewardScorer([("custom", 1.0, params)]).score(to_batch(sources, drawn))
    info = module.read_source.cache_info()
    assert (info.misses, info.currsize) == (100, 64) and info.currsize * 3 * 1024**2 <= 200 * 2**20
