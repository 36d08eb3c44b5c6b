# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from verl_uae.errors import ConfigError
from verl_uae.flow.advantage import group_advantage
from verl_uae.reward import RewardBatch, RewardScorer, to_tensors
from verl_uae.reward.terms.caption import CACHED_PICTURES, OcrGuard, legible_words, text_words, word_recall

SIDE = 256


def write_picture(
    lines: list[str], ink: tuple[int, int, int] = (0, 0, 0), paper: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Lines of text in Pillow's default font."""
    image = Image.new("RGB", (SIDE, SIDE), paper)
    font, draw = ImageFont.load_default(size=24), ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((12, 20 + 60 * number), line, fill=ink, font=font)
    return image


def batch_of(pictures: list[Image.Image], captions: list[str]) -> RewardBatch:
    source = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).permute(0, 3, 1, 2) / 255
    return RewardBatch(source, torch.zeros_like(source), captions=captions)


def test_words_of_a_text() -> None:
    assert text_words("OPEN daily: 9 a.m.\u2013\uff15 p.m., Caf\u00c9!") == [
        "open", "daily", "9", "a", "m", "5", "p", "m", "caf\u00e9",
    ]  # fmt: skip
    assert text_words("\u51fa\u53e3 exit\u51fa") == ["\u51fa", "\u53e3", "exit", "\u51fa"]


def test_which_words_are_legible() -> None:
    lines = [("Open a shop", 0.9), ("OPEN 7 \u53e3", 0.8), ("smudge", 0.79)]
    assert legible_words(lines, 0.8, 2) == ["open", "shop", "7", "\u53e3"]
    assert legible_words(lines, 0.8, 1) == ["open", "a", "shop", "7", "\u53e3"]
    assert legible_words(lines, 0.95, 1) == []


def _levenshtein(one: str, other: str) -> int:
    """By its recursive definition."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        same = distance(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(same, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(one), len(other))


def test_recall_against_the_definition() -> None:
    words = ["chocolate", "restaurant", "bakery", "open"]
    caption = "A chocolat shop, a restuarant next door, opens at noon"
    stated = text_words(caption)
    expected = []
    for word in words:
        best = max(1 - _levenshtein(word, other) / max(len(word), len(other)) for other in stated)
        expected.append(best if best >= 0.75 else 0.0)
    assert expected == pytest.approx([8 / 9, 0.8, 0.0, 0.8])
    assert word_recall(words, caption, 0.75) == pytest.approx(sum(expected) / 4)
    assert word_recall(words, caption, 0.85) == pytest.approx((8 / 9) / 4)


def test_recall_in_special_cases() -> None:
    assert word_recall(["helloworld", "again"], "It says Hello world again.", 0.9) == 1.0  # The engine lost a space.
    assert word_recall(["2019"], "from 2018", 0.5) == 0.0 and word_recall(["2019"], "in 2019.", 0.5) == 1.0
    assert word_recall(["b52"], "a B-52", 0.5) == 1.0
    assert word_recall(["stop"], "", 0.5) == word_recall(["stop"], "...", 0.5) == 0.0


def test_a_word_is_found_in_a_longer_run_of_words() -> None:
    """8 of the run's 10 letters; a run of more than 8 / 0.75 letters cannot be similar enough."""
    assert word_recall(["abcdefgh"], "abcd efghij", 0.75) == pytest.approx(0.8)
    assert word_recall(["abcdefgh"], "abcd efghijk", 0.75) == 0.0


def test_captions_that_state_all_half_and_none_of_the_text() -> None:
    picture = write_picture(["WELCOME", "Bakery"])
    captions = ["A sign: 'Welcome', below it 'BAKERY'.", "A white sign of a bakery.", "A white sign with black text."]
    term = {"engine_params": {"short_side": SIDE}}
    records = RewardScorer([("ocr_guard", 1.0, term)]).score(batch_of([picture] * 3, captions))
    assert [record.value for record in records] == pytest.approx([1.0, 0.5, 0.0])
    for record in records:
        assert record.terms["ocr_guard/words"] == 2.0 and record.terms["ocr_guard/recall"] == record.value


@pytest.mark.parametrize("without_text", [1.0, 0.25])
def test_a_group_without_text_gains_nothing_by_it(without_text: float) -> None:
    """Whatever its value is: the advantage is that of the other term alone."""
    text, blank = write_picture(["STOP"]), Image.new("RGB", (SIDE, SIDE), (90, 120, 60))
    captions = ["grass", "a lawn that is green", "STOP", "a sign"]
    params = {"without_text": without_text, "engine_params": {"short_side": SIDE}}
    words = {"low": 5, "high": 9, "fall": 10.0}
    batch, groups = batch_of([blank, blank, text, text], captions), ["blank", "blank", "text", "text"]
    guarded = RewardScorer([("ocr_guard", 1.0, params), ("caption_length", 1.0, words)]).score(batch)
    alone = RewardScorer([("caption_length", 1.0, words)]).score(batch)
    assert [record.terms["ocr_guard"] for record in guarded] == [without_text] * 2 + [1.0, 0.0]
    assert ["ocr_guard/recall" in record.terms for record in guarded] == [False, False, True, True]
    with_guard, _ = group_advantage(*to_tensors(guarded), groups)
    without, _ = group_advantage(*to_tensors(alone), groups)
    assert torch.allclose(with_guard[:2], without[:2], atol=1e-5) and not torch.allclose(with_guard[2:], without[2:])


def test_a_picture_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    term = OcrGuard(engine_params={"short_side": SIDE})
    read, seen = term.reader.read, []

    def count(image: Image.Image) -> list[tuple[str, float]]:
        seen.append(image)
        return read(image)

    monkeypatch.setattr(term.reader, "read", count)
    pictures = [write_picture([text]) for text in ("ONE", "TWO", "ONE")]
    for captions in (["one", "two", "one"], ["two"] * 3):
        values = [record.value for record in term.score(batch_of(pictures, captions))]
        assert values == [float(caption == text) for caption, text in zip(captions, ["one", "two", "one"], strict=True)]
    assert len(seen) == 2 and term._words.maxsize == CACHED_PICTURES


def test_a_picture_the_engine_fails_on_costs_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RewardScorer([("ocr_guard", 1.0, {"engine_params": {"short_side": SIDE}})])
    term = scorer._summed[0].term
    read = term.reader.read

    def fail(image: Image.Image) -> list[tuple[str, float]]:
        if image.getpixel((0, 0)) == (255, 0, 0):
            raise RuntimeError("no answer")
        return read(image)

    monkeypatch.setattr(term.reader, "read", fail)
    pictures = [write_picture(["STOP"]), Image.new("RGB", (SIDE, SIDE), (255, 0, 0))]
    records = scorer.score(batch_of(pictures, ["stop", "stop"]))
    assert [(record.status, record.value) for record in records] == [("ok", 1.0), ("error", None)]


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"without_text": 1.5}, "params.without_text"),
        ({"min_confidence": -0.1}, "params.min_confidence"),
        ({"min_similarity": 0.0}, "params.min_similarity"),
        ({"min_length": 0}, "params.min_length"),
        ({"engine": "tesseract"}, "params.engine"),
        ({"language": "en"}, "params"),
    ],
)
def test_impossible_parameters_are_refused_without_loading_the_engine(params: dict, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OcrGuard.check_params(params, "params")
    assert caught.value.key == key


def test_checking_loads_no_engine() -> None:
    code = "import sys; from verl_uae.reward.terms.caption import OcrGuard; OcrGuard.check_params({}, 'key')\n"
    code += "print([name for name in ('rapidocr', 'onnxruntime', 'cv2') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_one_caption_changes_no_other(make_batch) -> None:
    batch = replace(make_batch(3), captions=["a", "b", "c"])
    records = RewardScorer([("ocr_guard", 1.0, {})]).score(batch)
    assert [record.terms for record in records] == [{"ocr_guard": 1.0, "ocr_guard/words": 0.0}] * 3
