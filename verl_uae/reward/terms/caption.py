# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Terms of the caption alone: no picture is looked at.

Words are runs of letters with their combining marks, digits and apostrophes; a language without spaces between words
needs terms of its own.
"""

from __future__ import annotations

import math
import re
import unicodedata

import torch
from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.term import RewardTerm

#: What stands for every combining mark while words are looked for.
MARK = "\u0300"
#: Joiners belong to the word they are in, as in Persian.
_JOINERS = "\u200c\u200d"

_LETTERS = rf"(?:[^\W_]{MARK}*)+"
_WORD = re.compile(rf"{_LETTERS}(?:['\u2019]{_LETTERS})*")


def words_of(caption: str) -> list[str]:
    """Words of a caption in lower case, in order."""
    return find_words(_WORD, caption.lower())


def find_words(pattern: re.Pattern[str], text: str) -> list[str]:
    """Parts of a text that match a pattern in which :data:`MARK` is any combining mark.

    The vowel signs of Hindi and Arabic are marks, and to ``re`` a mark is no part of a word.
    """
    if text.isascii():
        return pattern.findall(text)
    alike = "".join(MARK if c in _JOINERS or unicodedata.category(c).startswith("M") else c for c in text)
    return [text[found.start() : found.end()] for found in pattern.finditer(alike)]


def length_band(count: int, low: int, high: int, fall: float) -> float:
    """1 for a count in [low, high], falling linearly to 0 at ``fall`` outside, in [0, 1].

    Args:
        count: number of words.
        low: smallest number that gives 1.
        high: largest number that gives 1.
        fall: distance from the band at which the value reaches 0, in words, above 0.
    """
    outside = max(low - count, count - high, 0)
    return max(0.0, 1.0 - outside / fall)


def repeated_share(words: list[str], n: int) -> float:
    """Share of the n-grams that repeat an earlier one: 1 - distinct / all, in [0, 1); 0 with fewer than n + 1 words.

    It is 1 minus the measure distinct-n (Li et al. 2016) of one text.
    """
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


class CaptionLength(RewardTerm):
    """:func:`length_band` of the caption's words.

    Args:
        low: smallest number of words that gives 1, at least 0.
        high: largest number of words that gives 1, at least ``low``.
        fall: number of words outside the band at which the value is 0, above 0.

    Raises:
        ConfigError: numbers that make no band.
    """

    needs = frozenset({"caption"})
    bounds = (0.0, 1.0)
    model_free = True

    def __init__(self, low: int, high: int, fall: float = 50.0) -> None:
        key = "uae.reward.terms.caption_length"
        if low < 0:
            raise ConfigError(f"{key}.low", f"must be at least 0 words, got {low}")
        if high < low:
            raise ConfigError(f"{key}.high", f"must be at least low = {low} words, got {high}")
        if not (math.isfinite(fall) and fall > 0.0):
            raise ConfigError(f"{key}.fall", f"must be above 0 words, got {fall}")
        self.low, self.high, self.fall = low, high, float(fall)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 1]."""
        assert batch.captions is not None
        return torch.tensor(
            [length_band(len(words_of(text)), self.low, self.high, self.fall) for text in batch.captions]
        )


class Repetition(RewardTerm):
    """:func:`repeated_share` of the caption; lower is better, so a positive weight is a penalty.

    Args:
        n: words of an n-gram, at least 1. Our choice: 3, which leaves ordinary function words alone.

    Raises:
        ConfigError: n below 1.
    """

    needs = frozenset({"caption"})
    bounds = (0.0, 1.0)
    higher_is_better = False
    model_free = True

    def __init__(self, n: int = 3) -> None:
        if n < 1:
            raise ConfigError("uae.reward.terms.repetition.n", f"must be at least 1 word, got {n}")
        self.n = n

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 1]."""
        assert batch.captions is not None
        return torch.tensor([repeated_share(words_of(text), self.n) for text in batch.captions])
