# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardScorer
from verl_uae.reward.terms.caption import CaptionLength, Repetition, length_band, repeated_share, text_words, words_of


def test_words() -> None:
    assert words_of("A man's red-blue HAT, 3 cats_here; \u00c9t\u00e9.") == [
        "a", "man's", "red", "blue", "hat", "3", "cats", "here", "\u00e9t\u00e9",
    ]  # fmt: skip
    assert words_of(" ... ") == []


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        # Hindi
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u090f\u0915 \u0932\u093e\u0932", 4),
        ("\u0645\u064f\u062f\u064e\u0631\u0651\u0650\u0633", 1),  # Arabic with vowel signs
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", 1),  # Persian, two parts joined
        ("re\u0301sume\u0301s of l\u2019e\u0301te\u0301", 3),  # decomposed accents
        ("\u0130stanbul", 1),  # small letters have a mark here
        ("\u2764\ufe0f love \u0301", 1),  # a mark alone is no word
    ],
)
def test_marks_belong_to_their_word(caption: str, count: int) -> None:
    assert len(words_of(caption)) == count
    # An apostrophe parts the words of a sign, which are compared letter by letter.
    assert len(text_words(caption)) == count + caption.count("\u2019")
    assert "".join(words_of(caption)) in caption.lower().replace(" ", "")


def test_length_band_is_the_trapezoid() -> None:
    found = [length_band(count, 10, 20, 5.0) for count in (0, 5, 7, 9, 10, 15, 20, 21, 24, 25, 400)]
    assert found == pytest.approx([0.0, 0.0, 0.4, 0.8, 1.0, 1.0, 1.0, 0.8, 0.2, 0.0, 0.0])
    assert length_band(0, 0, 0, 1.0) == 1.0


def test_repeated_share_against_counting_by_hand() -> None:
    words = ["a", "cat", "and", "a", "cat", "and", "a", "dog"]
    # a-cat cat-and and-a | a-cat cat-and and-a | a-dog: 7 bigrams, 4 distinct.
    assert repeated_share(words, 2) == pytest.approx(3 / 7)
    assert repeated_share(words, 1) == pytest.approx(1 - 4 / 8)
    assert repeated_share(["x"] * 101, 3) == pytest.approx(98 / 99)
    assert repeated_share(["a", "b"], 3) == repeated_share([], 1) == 0.0


def test_as_terms(make_batch) -> None:
    batch = replace(make_batch(3), captions=["", "one two three", "red red red red red"])
    assert torch.equal(CaptionLength(low=3, high=4, fall=2).score(batch), torch.tensor([0.0, 1.0, 0.5]))
    records = RewardScorer(
        [("caption_length", 1.0, {"low": 3, "high": 4, "fall": 2.0}), ("repetition", 0.5, {"n": 2})]
    ).score(batch)
    assert [record.value for record in records] == pytest.approx([0.0, 1.0, 0.5 - 0.5 * 0.75])
    assert records[2].terms["repetition"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("term", "params", "key"),
    [
        (CaptionLength, {"low": -1, "high": 2}, "low"),
        (CaptionLength, {"low": 3, "high": 2}, "high"),
        (CaptionLength, {"low": 1, "high": 2, "fall": 0.0}, "fall"),
        (CaptionLength, {"low": 1, "high": 2, "fall": float("nan")}, "fall"),
        (Repetition, {"n": 0}, "n"),
    ],
)
def test_impossible_numbers_are_refused_by_key(term, params, key) -> None:
    with pytest.raises(ConfigError) as error:
        term.check_params(params, "p")
    assert error.value.key.endswith(f".{key}")
